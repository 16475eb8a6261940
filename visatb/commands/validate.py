"""`visatb validate`: check all data and settings of an experiment, before anything is trained."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eval.errors import bad_input
from llava.data.decode import AT_MOST
from visatb.experiment.read import load_experiment
from visatb.workdir.layout import Layout
from visatb.workflow.checks import FAULTS, validate
from visatb.workflow.space import shortage

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    parser = argparse.ArgumentParser(prog="visatb validate", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    parser.add_argument("--workdir", type=Path, help="work folder that keeps the data index")
    parser.add_argument(
        "--all_images", action="store_true", help=f"decode all images, not a seeded choice of {AT_MOST:,} of them"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    warnings = _Warnings()
    logging.getLogger().addHandler(warnings)
    try:
        experiment = load_experiment(arguments.experiment)
        with tempfile.TemporaryDirectory(prefix="visatb-validate-") as temporary:
            layout = Layout((arguments.workdir or Path(temporary)).resolve())
            decoded = validate(experiment, layout, None if arguments.all_images else AT_MOST)
        if short := shortage(experiment, arguments.workdir or Path()):
            logger.warning("%s", short)
    except FAULTS as error:
        return bad_input(error)
    finally:
        logging.getLogger().removeHandler(warnings)
    noted = f" ({warnings.count} warnings above)" if warnings.count else ""
    sys.stdout.write(f"{arguments.experiment}: data and settings are fit to run{noted}\n")
    if decoded:
        sys.stdout.write(f"{decoded}\n")
    return 0


class _Warnings(logging.Handler):
    """Counts warnings, so that the last line says that there are some."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


if __name__ == "__main__":
    sys.exit(main())
