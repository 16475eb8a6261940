"""`visatb convert`: instruction data from one form into another, streaming, whole or not at all (docs/data.md)."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.data.errors import DataError
from visatb.convert.convert import FORMATS, convert


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for bad input."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parser().parse_args(argv)
    try:
        number = convert(args.input, args.output, args.to, args.image_folder, args.weights, args.task)
    except (DataError, OSError) as error:
        sys.stderr.write(f"visatb convert: {error}\n")
        return 2
    sys.stdout.write(f"{args.output}: {number} records\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visatb convert", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "input", type=Path, help="LLaVA JSON, messages (JSON or JSONL), or parquet: told apart by content"
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument("--image_folder", type=Path, help="what image paths are relative to; parquet's images go there")
    parser.add_argument("--weights", type=Path, help="weights file, for ms-swift and llama-factory")
    parser.add_argument("--task", help="the task (channel) of records that name none")
    return parser


if __name__ == "__main__":
    sys.exit(main())
