"""`results.json` and `cost.json`: the methods' test figures with ΔI and ΔE, and what each model took.

Figures are read from score files; of a task whose score comes from outside, from its file: `{method: value}` or
`{method: {metric: value}}`. Until that is there, the task waits, and ΔI and ΔE leave it out. A score that the run
itself should have made is never left out: without it there are no results.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import read_json, read_object, write_json
from eval.overall import Table, overall
from eval.scores import read_score_file
from visatb.experiment.models import models, stl_model
from visatb.experiment.schema import Experiment
from visatb.workdir.conclusions import conclusions
from visatb.workdir.layout import Layout
from visatb.workdir.state import Steps
from visatb.workdir.subsets import Subsets, TrainingData

_AGAIN = "a score that this run should have made is missing or damaged; remove the file and run again"
Figures = dict[str, list[float]]  # method → a task's values in the order of its metrics


def baseline(experiment: Experiment) -> str:
    """What ΔI and ΔE are relative to: STL where it is run, else EW, else the first method."""
    return next((name for name in ("STL", "EW") if name in experiment.methods), experiment.methods[0])


def write_results(experiment: Experiment, layout: Layout) -> None:
    """Write `results.json`; nothing where no methods are compared.

    Raises:
        EvaluationError: a score file of the run's own is missing or damaged, or one from outside is of another form.
    """
    if not experiment.methods:
        layout.results.unlink(missing_ok=True)
        return
    metrics: dict[str, list[dict[str, Any]]] = {}
    figures: dict[str, Figures] = {}
    waiting: dict[str, str] = {}
    for task in experiment.balanced:
        source = experiment.tasks[task].score
        if source is None:
            metrics[task], figures[task] = _scored(experiment, layout, task)
        elif Path(source).is_file():
            metrics[task], figures[task] = _from_outside(experiment, Path(source), task)
        else:
            metrics[task] = [{"metric": name, "higher_is_better": True} for name in experiment.tasks[task].metric]
            figures[task] = {}
            waiting[task] = source
    content: dict[str, Any] = {
        "baseline": baseline(experiment),
        "tasks": experiment.balanced,
        "metrics": metrics,
        "methods": {
            method: {task: figures[task].get(method) for task in experiment.balanced} for method in experiment.methods
        },
        "stl_models": {task: stl_model(experiment, task) for task in experiment.balanced}
        if "STL" in experiment.methods
        else {},
        "waiting": waiting,
    }
    content |= _deltas(experiment, metrics, figures)
    write_json(layout.results, content | conclusions(content, layout))


def _scored(experiment: Experiment, layout: Layout, task: str) -> tuple[list[dict[str, Any]], Figures]:
    metrics: list[dict[str, Any]] = []
    figures: Figures = {}
    for method in experiment.methods:
        model = stl_model(experiment, task) if method == "STL" else method
        metrics, figures[method] = _own_figures(layout.score("test", task, model))
    return metrics, figures


def _own_figures(path: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Metrics and figures of a score file that the run has made."""
    try:
        scores = read_score_file(path).scores
    except EvaluationError as error:
        raise EvaluationError(f"{error}: {_AGAIN}") from error
    metrics = [{"metric": one.metric, "higher_is_better": one.higher_is_better} for one in scores]
    return metrics, [one.value for one in scores]


def _from_outside(experiment: Experiment, path: Path, task: str) -> tuple[list[dict[str, Any]], Figures]:
    content = read_json(path)
    wanted = experiment.methods
    if not isinstance(content, dict) or not set(content) & set(wanted):
        raise EvaluationError(f"{path}: must hold an object {{method: score}} for {', '.join(wanted)} on {task}")
    figures: Figures = {}
    names: list[str] = []
    for method in wanted:
        if method not in content:
            continue
        entry = content[method]
        values = entry if isinstance(entry, dict) else {experiment.tasks[task].metric[0]: entry}
        if names and list(values) != names:
            raise EvaluationError(f"{path}: {method} has {', '.join(values)}, but others have {', '.join(names)}")
        names = list(values)
        figures[method] = [_number(value, f"{path}: {method}") for value in values.values()]
    return [{"metric": name, "higher_is_better": True} for name in names], figures


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # a whole number beyond every float
        number = math.inf
    if not math.isfinite(number):
        raise EvaluationError(f"{what} must be a finite number, not {str(value)[:60]!r}")
    return number


def _deltas(experiment: Experiment, metrics: dict[str, list[dict[str, Any]]], figures: dict[str, Figures]) -> Any:
    """ΔI and ΔE over the tasks that every method has figures of, and which those are."""
    complete = [task for task in experiment.balanced if set(figures[task]) == set(experiment.methods)]
    if not complete:
        return {"delta_i": {}, "delta_e": {}, "delta_tasks": []}
    methods: dict[str, dict[tuple[str, str], float]] = {method: {} for method in experiment.methods}
    upwards: dict[tuple[str, str], bool] = {}
    for task in complete:
        for place, metric in enumerate(metrics[task]):
            key = (task, str(metric["metric"]))
            upwards[key] = bool(metric["higher_is_better"])
            for method in experiment.methods:
                methods[method][key] = figures[task][method][place]
    try:
        compared = overall(Table(methods, upwards), baseline(experiment))
    except EvaluationError as error:
        return {"delta_i": {}, "delta_e": {}, "delta_tasks": [], "delta_problem": str(error)}
    return {
        "delta_i": {method: one.improvement for method, one in compared.items()},
        "delta_e": {method: one.error for method, one in compared.items()},
        "delta_tasks": complete,
    }


def write_cost(experiment: Experiment, layout: Layout) -> None:
    """Write `cost.json`: the seconds of each model's training and answering, and on what."""
    subsets = Subsets.read(layout) if layout.subsets.exists() else Subsets()
    cost = {}
    for model in models(experiment):
        steps = Steps(layout, model.name)
        card = read_object(layout.model(model.name) / "run_card.json")
        hardware = card.get("hardware") or {}
        data = subsets.models.get(model.name, TrainingData({}))
        asked = [subsets.questions[split].get(task) for split, tasks in model.asked.items() for task in tasks]
        cost[model.name] = {
            "train_seconds": steps.seconds("train") if model.data else 0.0,
            "infer_seconds": steps.seconds("answer"),
            "samples": data.samples,
            "questions": sum(questions.count for questions in asked if questions),
            "steps": card.get("steps", 0),
            "device": ", ".join(hardware.get("gpus") or []) or hardware.get("machine", ""),
        }
    write_json(layout.cost, cost)
