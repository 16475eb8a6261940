"""`visatb report`: an experiment's results and report made again from its work folder, with scores that came since."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eval.core import EvaluationError
from visatb.experiment import load_experiment
from visatb.layout import Layout
from visatb.report.cli import main as make_report
from visatb.report.cli import parser
from visatb.workflow.results import write_cost, write_results
from visatb.yaml_lines import ExperimentError


def main(argv: Sequence[str] | None = None) -> int:
    """Command line (that of `visatb.report`); returns the exit status (0, or 2 for bad input)."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(words)
    try:
        for folder in filter(None, (arguments.workdir, arguments.other)):
            layout = Layout(folder.resolve())
            if layout.engine.is_dir() and layout.experiment.is_file():
                experiment = load_experiment(layout.experiment)
                write_cost(experiment, layout)
                write_results(experiment, layout)
    except (ExperimentError, EvaluationError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return make_report(words)
