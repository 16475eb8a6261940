"""`visatb plan`: print what an experiment will run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.errors import bad_input
from eval.repeats import split_repeat
from llava.data.errors import DataError
from visatb.commands.terminal import duration, plain_console, size
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workflow.estimate import ModelPlan, Plan, make_plan
from visatb.workflow.space import shortage


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    parser = argparse.ArgumentParser(prog="visatb plan", description=__doc__)
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    parser.add_argument("--workdir", type=Path, help="work folder whose measurements are used")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    arguments = parser.parse_args(argv)
    try:
        experiment = load_experiment(arguments.experiment)
        plan = make_plan(experiment, arguments.workdir)
        short = shortage(experiment, arguments.workdir or Path())
    except (ExperimentError, DataError) as error:
        return bad_input(error)
    if arguments.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(plan), indent=1, ensure_ascii=False) + "\n")
    else:
        show(plan, plain_console())
    if short is not None:
        sys.stderr.write(f"warning: {short}\n")
    return 0


def show(plan: Plan, console: Console) -> None:
    """Print a plan as tables."""
    console.print(_model_table(plan))
    console.print(_form_table(plan))
    for text in plan.advice:
        console.print(Text.assemble(("advice: ", "yellow"), text))
    for text in plan.notes:
        console.print(f"note: {text}")


def _model_table(plan: Plan) -> Table:
    table = Table(
        title=f"{plan.experiment}: {len(plan.models)} models, {plan.form} form",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("model", no_wrap=True)
    for name in ("samples", "steps", "questions", "to answer", "disk, peak", "kept"):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(7, len(name)))
    for name, model in _rows(plan):
        table.add_row(
            name,
            f"{model.samples:,}" if model.samples else "–",
            f"{model.steps:,}" if model.steps else "–",
            f"{model.questions:,}" if model.questions else "–",
            duration(model.answer_seconds),
            size(model.peak_bytes),
            size(model.kept_bytes),
        )
    table.add_section()
    table.add_row(
        "together",
        f"{sum(model.samples for model in plan.models):,}",
        f"{sum(model.steps for model in plan.models):,}",
        f"{sum(model.questions for model in plan.models):,}",
        duration(_total([model.answer_seconds for model in plan.models])),
        "",
        size(_total([model.kept_bytes for model in plan.models])),
    )
    return table


def _rows(plan: Plan) -> Iterator[tuple[str, ModelPlan]]:
    """The models, those that differ in nothing but their repeat in one row with the figures of each."""
    alike: dict[ModelPlan, int] = {}
    for model in plan.models:
        first = dataclasses.replace(model, name=split_repeat(model.name)[0])
        alike[first] = alike.get(first, 0) + 1
    for model, count in alike.items():
        yield (model.name if count == 1 else f"{model.name} (each of {count})"), model


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _form_table(plan: Plan) -> Table:
    table = Table(title="Cost of finding λ, in final runs", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("form", "trainings", "by samples", "the paper's estimate", ""):
        table.add_column(name, justify="right" if name in ("trainings", "by samples") else "left")
    for form in plan.forms:
        chosen = "← this one" if form.name == plan.form else ""
        estimate = f"{form.formula} = {form.by_formula:.2f}"
        table.add_row(form.name, str(form.trainings), f"{form.counted:.2f} ×", estimate, chosen)
    return table


if __name__ == "__main__":
    sys.exit(main())
