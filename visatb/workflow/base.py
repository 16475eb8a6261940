"""Put a LLaVA together from its parts and save it, without training: the base model that the simple form validates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.disk import move_into_place


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments, rest = parser.parse_known_args(argv)

    import torch

    from llava.train.arguments import UsageError, parse_arguments
    from llava.train.model import find_source, make_base

    words = [*rest, "--output_dir", str(arguments.output_dir), "--data_path", __file__]
    try:
        model, data, training = parse_arguments(words)
        source = find_source(model, data, training)
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        made = make_base(source, arguments.output_dir, torch.float32)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    _publish(made, arguments.output_dir)
    return 0


def _publish(made: Path, folder: Path) -> None:
    """Move the model's files up into the folder, its configuration last."""
    if made.parent != folder:
        raise RuntimeError(f"{made} is a model already")
    for file in sorted(made.iterdir(), key=lambda file: file.name == "config.json"):
        move_into_place(file, folder / file.name)
    made.rmdir()


if __name__ == "__main__":
    sys.exit(main())
