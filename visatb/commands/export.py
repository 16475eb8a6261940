"""`visatb export`: task weights as the mixing ratios of another trainer, in a file that it reads (docs/trainers.md)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.errors import EvaluationError, bad_input
from eval.files import write_text
from eval.weights import read_weights
from llava.data.errors import DataError
from visatb.convert.mixture import FORMATS, read_mixture
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.layout import Layout


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for bad input."""
    args = _parser().parse_args(argv)
    try:
        weights = read_weights(args.weights)["weights"]
        mixture = read_mixture(weights, _files(args))
        text = FORMATS[args.to](mixture)
        if args.output is None:
            sys.stdout.write(text)
        else:
            write_text(args.output, text)
    except (DataError, EvaluationError, ExperimentError, OSError) as error:
        return bad_input(error)
    return 0


def _files(args: argparse.Namespace) -> dict[str, list[str]]:
    """The data files of each task: as given, else those of the experiment."""
    if args.data:
        found: dict[str, list[str]] = {}
        for task, path in args.data:
            found.setdefault(task, []).append(path)
        return found
    file = args.experiment or Layout(args.weights.parent).experiment
    if not file.is_file():
        raise DataError(f"{file} is not there: name the experiment (--experiment) or the data (--data TASK=FILE …)")
    return {name: list(task.train) for name, task in load_experiment(file).tasks.items()}


def _pair(text: str) -> tuple[str, str]:
    task, mark, path = text.partition("=")
    if not (task and mark and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=FILE")
    return task, path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visatb export", description=__doc__, allow_abbrev=False)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS.json", help="as weighting_visatb.py writes it")
    parser.add_argument("--to", choices=list(FORMATS), required=True)
    parser.add_argument("--output", type=Path, help="the file to write (none: the screen)")
    parser.add_argument("--experiment", type=Path, help="whose tasks name the data (none: the one beside the weights)")
    parser.add_argument("--data", type=_pair, nargs="+", metavar="TASK=FILE", help="the data themselves")
    return parser


if __name__ == "__main__":
    sys.exit(main())
