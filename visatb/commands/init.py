"""`visatb init`: draft an experiment file from a folder of LLaVA JSON files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.data.errors import DataError
from llava.disk import write_problem
from visatb.experiment.draft import draft
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workflow.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    parser = argparse.ArgumentParser(prog="visatb init", description="Draft an experiment file for a folder of data.")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of {task}_{train|val|test}-{size}.json files"
    )
    parser.add_argument("--output", type=Path, default=Path("experiment.yaml"), metavar="FILE")
    parser.add_argument("--model", default="llava-hf/llava-1.5-7b-hf", help="checkpoint to start from")
    parser.add_argument("--image-folder", "--image_folder", type=Path, metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output.exists():
            raise ExperimentError(f"{arguments.output} exists: name another --output")
        text = draft(arguments.folder, arguments.output, arguments.model, arguments.image_folder)
        write_text(arguments.output, text)
    except (ExperimentError, DataError, OSError) as error:
        sys.stderr.write(f"error: {write_problem(error, arguments.output.parent) or error}\n")
        return 2
    sys.stdout.write(f"{arguments.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
