"""Convert checkpoints between original LLaVA's layout and transformers', lossless both ways.

    python -m llava.model.convert --source llava-v1.5-7b --output llava-hf            # original → transformers
    python -m llava.model.convert --source llava-hf --output llava-v1.5 --to original

Full models, LoRA adapters (with ``non_lora_trainables.bin``) and projector files (``mm_projector.bin``) are told apart
by what the source holds. At most one shard is in memory, beside the vision tower.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from eval.errors import bad_input
from llava.model.original.lora import lora_from_original, lora_to_original
from llava.model.original.model import from_original, to_original
from llava.model.original.names import is_original, read_config
from llava.model.projector_file import convert_projector_file


def convert(source: Path, output: Path, to: str, vision_tower: str | None = None, model_base: str | None = None) -> str:
    """Convert whatever ``source`` is; returns what it was. ``to``: "transformers" or "original"."""
    if source.is_file():
        convert_projector_file(source, output, to)
        return "projector"
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder")
    lora = (source / "adapter_config.json").exists()
    original = is_original(read_config(source))
    if original == (to == "original"):
        raise ValueError(f"{source}: is in {to} layout already")
    if lora and original:
        lora_from_original(source, output, vision_tower, model_base)
    elif lora:
        lora_to_original(source, output, vision_tower)
    elif original:
        from_original(source, output, vision_tower)
    else:
        to_original(source, output, vision_tower)
    return "LoRA adapter" if lora else "model"


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 on success, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.model.convert",
        description="Convert LLaVA checkpoints between the original layout and transformers' layout.",
    )
    parser.add_argument("--source", type=Path, required=True, help="model or adapter folder, or mm_projector.bin")
    parser.add_argument("--output", type=Path, required=True, help="new folder (or file, for a projector)")
    parser.add_argument("--to", choices=("transformers", "original"), default="transformers")
    parser.add_argument("--vision-tower", help="folder of the CLIP tower, if not where the model's config says")
    parser.add_argument("--model-base", help="language model of a LoRA adapter, if not where its config says")
    args: Any = parser.parse_args(argv)
    try:
        kind = convert(args.source, args.output, args.to, args.vision_tower, args.model_base)
    except ValueError as error:
        return bad_input(error)
    print(f"{kind} in {args.to} layout: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
