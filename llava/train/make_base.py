"""A LLaVA put together from its parts, or out of LLaVA's original layout, and saved without any training.

    python -m llava.train.make_base --model_name_or_path MODEL --vision_tower TOWER --output_dir FOLDER

Training makes such a folder for itself. By itself the command gives the base model that the simple form validates.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from eval.errors import bad_input
from eval.files import move_into_place
from llava.model.assemble import build_llava
from llava.model.original.model import from_original
from llava.model.projector import VisionFeatures
from llava.model.upstream import without_zero3
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, UsageError
from llava.train.folder import BASE_MODEL
from llava.train.source import Source, locate_source
from transformers_patch.checkpoint import COMPLETE, find_damage, mark_complete

logger = logging.getLogger(__name__)

_PART_FLAGS = {
    ModelArguments: (
        *("model_name_or_path", "version", "vision_tower", "pretrain_mm_mlp_adapter"),
        *("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature"),
    ),
    DataArguments: ("image_aspect_ratio",),
    TrainingArguments: ("model_max_length", "cache_dir", "seed"),
}
"""The training flags that say what a model is made of, by the dataclass that explains them."""
_NUMBERS = ("mm_vision_select_layer", "model_max_length", "seed")


def make_base(source: Source, output_dir: Path, dtype: torch.dtype) -> Path:
    """Return a folder in transformers' layout that holds the model, making it in `output_dir` where there is none.

    To be called on one rank only.
    """
    if source.ready:
        return source.folder
    base = output_dir / BASE_MODEL
    if base.is_dir():
        damage = find_damage(base)
        if damage is None:
            return base
        logger.warning("%s: %s; it is made again", base, damage)
        shutil.rmtree(base)
    making = output_dir / f".{BASE_MODEL}"
    if making.exists():
        shutil.rmtree(making)
    with without_zero3():
        if source.kind == "original":
            from_original(source.folder, making, None if source.vision_tower is None else str(source.vision_tower))
        else:
            _build_from_parts(source, making, dtype)
    source.processor.save_pretrained(making)
    mark_complete(making, hashed=True)
    move_into_place(making, base)
    return base


def _build_from_parts(source: Source, folder: Path, dtype: torch.dtype) -> None:
    config: Any = source.config
    assert source.vision_tower is not None
    features = VisionFeatures.of(config)
    model, _ = build_llava(source.folder, source.vision_tower, features, source.projector, dtype=dtype)
    model.save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    given = vars(_parser().parse_args(argv))
    folder: Path = given["output_dir"]
    try:
        model = ModelArguments(**{name: given[name] for name in _PART_FLAGS[ModelArguments]})
        source = locate_source(model, given["image_aspect_ratio"], given["model_max_length"], given["cache_dir"])
        if source.ready:
            raise UsageError(f"{source.folder} is a model already: nothing to make")
        folder.mkdir(parents=True, exist_ok=True)
        set_seed(given["seed"])  # for a projector that no file gives: as training with this seed draws it
        _move_up(make_base(source, folder, torch.float32), folder)
    except UsageError as error:
        return bad_input(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.train.make_base",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="new folder")
    for part, names in _PART_FLAGS.items():
        fields = {field.name: field for field in dataclasses.fields(part)}
        for name in names:
            field = fields[name]
            parser.add_argument(
                f"--{name}",
                type=int if name in _NUMBERS else str,
                default=field.default,
                choices=field.metadata.get("choices"),
                help=field.metadata["help"],
            )
    return parser


def _move_up(base: Path, folder: Path) -> None:
    """Move the model's files into the folder itself, its configuration last."""
    (base / COMPLETE).unlink()  # what it says is for the folder that goes
    for file in sorted(base.iterdir(), key=lambda file: file.name == "config.json"):
        move_into_place(file, folder / file.name)
    base.rmdir()


if __name__ == "__main__":
    sys.exit(main())
