"""`visatb init`: draft an experiment file from a folder of LLaVA JSON files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.files import write_text
from llava.data.errors import DataError
from llava.disk import write_problem
from visatb.experiment.draft import draft
from visatb.experiment.yaml_lines import ExperimentError


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    parser = argparse.ArgumentParser(prog="visatb init", description="Draft an experiment file for a folder of data.")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of {task}_{train|val|test}-{size}.json files"
    )
    parser.add_argument("--output", type=Path, default=Path("experiment.yaml"), metavar="FILE")
    parser.add_argument("--model", default="llava-hf/llava-1.5-7b-hf", help="checkpoint to start from")
    parser.add_argument("--image-folder", "--image_folder", type=Path, metavar="DIR")
    parser.add_argument("--null", metavar="TASK", help="a null experiment: this task split at random into five tasks")
    parser.add_argument("--seed", type=int, default=0, help="of that split (default 0)")
    arguments = parser.parse_args(argv)
    try:
        output = arguments.output
        if output.exists():
            raise ExperimentError(f"{output} exists: name another --output")
        if arguments.null and not output.suffix:
            raise ExperimentError(f"{output}: name it {output}.yaml; the data are written into a folder {output}")
        text = draft(arguments.folder, output, arguments.model, arguments.image_folder, arguments.null, arguments.seed)
        write_text(arguments.output, text)
    except (ExperimentError, DataError, OSError) as error:
        sys.stderr.write(f"error: {write_problem(error, arguments.output.parent) or error}\n")
        return 2
    sys.stdout.write(f"{arguments.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
