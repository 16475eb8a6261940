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
from visatb.workflow.fit import CARDS, GIB, Card, Memory, Setup, found_card
from visatb.workflow.space import shortage


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    parser = argparse.ArgumentParser(prog="visatb plan", description=__doc__)
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    parser.add_argument("--workdir", type=Path, help="work folder whose measurements are used")
    parser.add_argument(
        "--gpu",
        choices=["auto", *CARDS],
        help="the GPU it is to run on, for memory and training time (auto: this machine's)",
    )
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    arguments = parser.parse_args(argv)
    try:
        experiment = load_experiment(arguments.experiment)
        plan = make_plan(experiment, arguments.workdir, _card(arguments.gpu))
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


def _card(name: str | None) -> Card | None:
    if name != "auto":
        return CARDS[name] if name else None
    found = found_card()
    if found is None:
        raise ExperimentError(f"--gpu auto: no GPU of this machine is among {', '.join(CARDS)}; name one of these")
    return found[0]


def show(plan: Plan, console: Console) -> None:
    """Print a plan as tables."""
    console.print(_model_table(plan, console.width))
    if plan.fits:
        console.print(_memory_table(plan))
    for fit in plan.fits:
        if not fit.fits:
            console.print(Text.assemble((f"{fit.stage} do not fit: ", "red"), f"what would: {fit.remedy}"))
    console.print(_form_table(plan))
    if kept := _total([model.kept_bytes for model in plan.models]):
        console.print(f"disk: {size(kept)} stay in the work folder when all is done")
    for text in plan.advice:
        console.print(Text.assemble(("advice: ", "yellow"), text))
    for text in plan.notes:
        console.print(f"note: {text}")


def _model_table(plan: Plan, room: int) -> Table:
    rows = [(name, _cells(model)) for name, model in _rows(plan)]
    together = {
        "samples": f"{sum(model.samples for model in plan.models):,}",
        "steps": f"{sum(model.steps for model in plan.models):,}",
        "to train": duration(_total([model.train_seconds for model in plan.models])),
        "questions": f"{sum(model.questions for model in plan.models):,}",
        "to answer": duration(_total([model.answer_seconds for model in plan.models])),
        "disk, peak": "",
    }
    table = Table(
        title=f"{plan.experiment}: {len(plan.models)} models, {plan.form} form",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    shown = [name for name in together if name != "to train" or any(model.train_seconds for model in plan.models)]
    everything = [together, *(cells for _, cells in rows)]
    widths = {name: max(len(name), *(len(cells[name]) for cells in everything)) for name in shown}
    # A number that is cut off is another number: rather cut the models' names.
    left = room - sum(widths.values()) - 2 * len(widths)
    table.add_column("model", no_wrap=True, max_width=max(left, 8))
    for name, width in widths.items():
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    for name, cells in rows:
        table.add_row(name, *(cells[column] for column in shown))
    table.add_section()
    table.add_row("together", *(together[column] for column in shown))
    return table


def _cells(model: ModelPlan) -> dict[str, str]:
    return {
        "samples": f"{model.samples:,}" if model.samples else "–",
        "steps": f"{model.steps:,}" if model.steps else "–",
        "to train": duration(model.train_seconds),
        "questions": f"{model.questions:,}" if model.questions else "–",
        "to answer": duration(model.answer_seconds),
        "disk, peak": size(model.peak_bytes),
    }


def _rows(plan: Plan) -> Iterator[tuple[str, ModelPlan]]:
    """The models, those that differ in nothing but their repeat in one row with the figures of each."""
    alike: dict[ModelPlan, int] = {}
    for model in plan.models:
        first = dataclasses.replace(model, name=split_repeat(model.name)[0])
        alike[first] = alike.get(first, 0) + 1
    for model, count in alike.items():
        yield (model.name if count == 1 else f"{model.name} (each of {count})"), model


def _memory_table(plan: Plan) -> Table:
    table = Table(title="Memory of one GPU in GiB, reckoned", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for fit in plan.fits:
        table.add_column(fit.stage, justify="right", no_wrap=True)
    setups = [fit.setup for fit in plan.fits]
    table.add_row("samples × tokens at once", *(f"{one.micro_batch} × {one.length:,}" for one in setups))
    table.add_row("", *(_how(one) for one in setups))
    for part in dataclasses.fields(Memory):
        table.add_row(part.name, *(f"{getattr(fit.memory, part.name) / GIB:.1f}" for fit in plan.fits))
    table.add_section()
    table.add_row("together", *(f"{fit.memory.total / GIB:.1f}" for fit in plan.fits))
    table.add_row("", *("fits" if fit.fits else "does not fit" for fit in plan.fits))
    return table


def _how(setup: Setup) -> str:
    parts = [f"LoRA {setup.rank}" if setup.rank else "", f"ZeRO-{setup.stage}" if setup.stage else ""]
    return ", ".join(filter(None, parts)) or "whole"


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
