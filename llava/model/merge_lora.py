"""Add a LoRA adapter into its base and save the plain model, in transformers' layout.

    python -m llava.model.merge_lora --model-path ADAPTER --model-base BASE --save-model-path OUT

The base is a saved model, or a language model (then the adapter must hold the projector, as LLaVA's do).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from eval.errors import bad_input
from llava.model.load import DTYPES, load_model_and_processor
from llava.model.shards import whole_folder


def merge_lora(
    model_path: str,
    model_base: str | None,
    save_model_path: Path,
    dtype: torch.dtype | str = "auto",
    vision_tower: str | None = None,
) -> None:
    """Write the merged model and its processor to ``save_model_path``. Raises ValueError on bad input."""
    if Path(model_path).is_dir() and not (Path(model_path) / "adapter_config.json").exists():
        raise ValueError(f"{model_path}: holds no LoRA adapter (adapter_config.json)")
    with whole_folder(save_model_path) as folder:
        model, processor = load_model_and_processor(model_path, model_base, dtype, vision_tower=vision_tower)
        model.save_pretrained(str(folder))
        processor.save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 on success, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m llava.model.merge_lora", description=__doc__.split("\n")[0])
    parser.add_argument("--model-path", required=True, help="adapter folder")
    parser.add_argument("--model-base", help="base folder, if not where the adapter's configuration says")
    parser.add_argument("--save-model-path", type=Path, required=True, help="new folder")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: the base's)")
    parser.add_argument("--vision-tower", help="folder of the CLIP tower, if not where the adapter's config says")
    args = parser.parse_args(argv)
    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    try:
        merge_lora(args.model_path, args.model_base, args.save_model_path, dtype, args.vision_tower)
    except ValueError as error:
        return bad_input(error)
    print(f"merged model: {args.save_model_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
