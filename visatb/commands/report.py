"""`visatb report WORKDIR`: results and report made again from a work folder, with scores that came from outside since.

With another work folder: a page that compares the two.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.errors import EvaluationError, bad_input
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.report import IMAGE_BYTES, SAMPLES_PER_TASK, build, compare
from visatb.workdir.layout import Layout
from visatb.workdir.results import write_cost, write_results


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input). The page's path goes to standard output."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    from visatb.report.load import ReportError

    try:
        for folder in filter(None, (arguments.workdir, arguments.other)):
            _refresh(Layout(folder.resolve()))
        if arguments.other is None:
            path = build(arguments.workdir, arguments.samples, round(arguments.image_megabytes * 1e6))
        else:
            path = compare(arguments.workdir, arguments.other)
    except (ReportError, ExperimentError, EvaluationError) as error:
        return bad_input(error)
    sys.stdout.write(f"{path}\n")
    return 0


def _refresh(layout: Layout) -> None:
    """Make `results.json` and `cost.json` of a work folder again, where it is one of `visatb run`."""
    if layout.engine.is_dir() and layout.experiment.is_file():
        experiment = load_experiment(layout.experiment)
        write_cost(experiment, layout)
        write_results(experiment, layout)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="visatb report", description="Make the report of an experiment (again).")
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="work folder of `visatb run`")
    parser.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="another one, to compare it with")
    parser.add_argument(
        "--samples", type=_count, default=SAMPLES_PER_TASK, metavar="N",
        help=f"questions shown with their predictions, of each task and split (default: {SAMPLES_PER_TASK})",
    )  # fmt: skip
    parser.add_argument(
        "--image_megabytes", type=_megabytes, default=IMAGE_BYTES / 1e6, metavar="MB",
        help=f"most that all their images together may take (default: {IMAGE_BYTES / 1e6:g})",
    )  # fmt: skip
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _megabytes(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError("must be from 0 to 1e6")
    return number


if __name__ == "__main__":
    sys.exit(main())
