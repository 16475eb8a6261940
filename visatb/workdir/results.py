"""`results.json` and `cost.json`: the methods' test figures with ΔI and ΔE, and what each model took.

Figures are read from score files; of a task whose score comes from outside, from its file: `{method: value}` or
`{method: {metric: value}}`, a second training's under `METHOD#2`. Until that is there, the task waits, and ΔI and ΔE
leave it out. A score that the run itself should have made is never left out: without it there are no results.

With repeats `runs` holds each one's figures, and `delta_runs` each one's ΔI, ΔE and I_i against the baseline of the
same repeat, so of the same seed; `methods`, ΔI and ΔE are the means over the repeats.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import read_json, write_json
from eval.overall import Overall, Table, overall
from eval.repeats import repeat_name
from eval.scores import read_score_file
from visatb.experiment.models import models, stl_model
from visatb.experiment.schema import Experiment
from visatb.workdir.conclusions import conclusions
from visatb.workdir.contents import RunCard, read_run_card
from visatb.workdir.layout import Layout
from visatb.workdir.results_file import Metric, Results
from visatb.workdir.state import Steps
from visatb.workdir.subsets import Subsets, TrainingData

_AGAIN = "a score that this run should have made is missing or damaged; remove the file and run again"
Figures = dict[str, list[list[float]]]  # method → for each repeat, a task's values in the order of its metrics


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
    metrics: dict[str, list[Metric]] = {}
    figures: dict[str, Figures] = {}
    waiting: dict[str, str] = {}
    for task in experiment.balanced:
        source = experiment.tasks[task].score
        if source is None:
            metrics[task], figures[task] = _scored(experiment, layout, task)
        elif Path(source).is_file():
            metrics[task], figures[task], lacking = _from_outside(experiment, Path(source), task)
            if lacking:
                waiting[task] = f"{source} ({', '.join(lacking)})"
        else:
            metrics[task], figures[task] = [Metric(name) for name in experiment.tasks[task].metric], {}
            waiting[task] = source
    methods, tasks = experiment.methods, experiment.balanced
    results = Results(
        baseline=baseline(experiment),
        tasks=tasks,
        metrics=metrics,
        methods={method: {task: _mean(figures[task].get(method)) for task in tasks} for method in methods},
        runs={method: {task: figures[task].get(method) for task in tasks} for method in methods},
        repeats=dict.fromkeys(methods, experiment.repeats.finals),
        stl_runs={task: _models_of(experiment, "STL", task) for task in tasks} if "STL" in methods else {},
        waiting=waiting,
        **_deltas(experiment, metrics, figures),
    )
    write_json(layout.results, results.as_json() | conclusions(results, layout))


def _mean(runs: list[list[float]] | None) -> list[float] | None:
    """A task's values, each the mean over the repeats."""
    return None if runs is None else [math.fsum(values) / len(values) for values in zip(*runs, strict=True)]


def _repeats(experiment: Experiment) -> range:
    return range(1, experiment.repeats.finals + 1)


def _models_of(experiment: Experiment, method: str, task: str) -> list[str]:
    """The models behind a method's figures on a task, one for each repeat."""
    of_stl = method == "STL"
    return [
        stl_model(experiment, task, repeat) if of_stl else repeat_name(method, repeat)
        for repeat in _repeats(experiment)
    ]


def _scored(experiment: Experiment, layout: Layout, task: str) -> tuple[list[Metric], Figures]:
    metrics: list[Metric] = []
    figures: Figures = {}
    for method in experiment.methods:
        figures[method] = []
        for model in _models_of(experiment, method, task):
            metrics, values = _own_figures(layout.score("test", task, model))
            figures[method].append(values)
    return metrics, figures


def _own_figures(path: Path) -> tuple[list[Metric], list[float]]:
    """Metrics and figures of a score file that the run has made."""
    try:
        scores = read_score_file(path).scores
    except EvaluationError as error:
        raise EvaluationError(f"{error}: {_AGAIN}") from error
    return [Metric(score.metric, score.higher_is_better) for score in scores], [score.value for score in scores]


def _from_outside(experiment: Experiment, path: Path, task: str) -> tuple[list[Metric], Figures, list[str]]:
    """Metrics and figures of a task's own file, and the runs that it lacks of methods that it has other runs of."""
    content = read_json(path)
    runs: dict[str, list[str]] = {
        method: [repeat_name(method, repeat) for repeat in _repeats(experiment)] for method in experiment.methods
    }
    wanted = [name for names in runs.values() for name in names]
    if not isinstance(content, dict) or not set(content) & set(wanted):
        raise EvaluationError(f"{path}: must hold an object {{method: score}} for {', '.join(wanted)} on {task}")
    found: dict[str, list[float]] = {}
    metrics: list[str] = []
    for name in (name for name in wanted if name in content):
        entry = content[name]
        values = entry if isinstance(entry, dict) else {experiment.tasks[task].metric[0]: entry}
        if metrics and list(values) != metrics:
            raise EvaluationError(f"{path}: {name} has {', '.join(values)}, but others have {', '.join(metrics)}")
        metrics = list(values)
        found[name] = [_number(value, f"{path}: {name}") for value in values.values()]
    begun = {method: names for method, names in runs.items() if found.keys() & set(names)}
    lacking = [name for names in begun.values() for name in names if name not in found]
    figures = {method: [found[name] for name in names] for method, names in begun.items() if found.keys() >= set(names)}
    return [Metric(name) for name in metrics], figures, lacking


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # a whole number beyond every float
        number = math.inf
    if not math.isfinite(number):
        raise EvaluationError(f"{what} must be a finite number, not {str(value)[:60]!r}")
    return number


def _deltas(experiment: Experiment, metrics: dict[str, list[Metric]], figures: dict[str, Figures]) -> dict[str, Any]:
    """ΔI and ΔE over the tasks that every method has figures of, which those are, and the same for each repeat."""
    complete = [task for task in experiment.balanced if set(figures[task]) == set(experiment.methods)]
    none: dict[str, Any] = {"delta_i": {}, "delta_e": {}, "delta_tasks": [], "delta_runs": {}}
    if not complete:
        return none
    try:
        runs = [_overall(experiment, complete, metrics, figures, repeat - 1) for repeat in _repeats(experiment)]
    except EvaluationError as error:
        return {**none, "delta_problem": str(error)}
    by_run = {method: _by_run([run[method] for run in runs]) for method in runs[0]}
    means = {
        key: {method: math.fsum(found[key]) / len(runs) for method, found in by_run.items()}
        for key in ("delta_i", "delta_e")
    }
    return {**means, "delta_tasks": complete, "delta_runs": by_run}


def _by_run(runs: list[Overall]) -> dict[str, Any]:
    """One method's ΔI, ΔE and I_i of each task in percent, as lists with an entry for each repeat."""
    return {
        "delta_i": [run.improvement for run in runs],
        "delta_e": [run.error for run in runs],
        "tasks": {task: [run.tasks[task] for run in runs] for task in runs[0].tasks},
    }


def _overall(
    experiment: Experiment, tasks: list[str], metrics: dict[str, list[Metric]], figures: dict[str, Figures], run: int
) -> dict[str, Overall]:
    """Eq. 9 of every method from the figures of the run of this index (0, 1, …)."""
    methods: dict[str, dict[tuple[str, str], float]] = {method: {} for method in experiment.methods}
    upwards: dict[tuple[str, str], bool] = {}
    for task in tasks:
        keys = [(task, metric.name) for metric in metrics[task]]
        upwards |= {(task, metric.name): metric.higher_is_better for metric in metrics[task]}
        for method in experiment.methods:
            methods[method] |= dict(zip(keys, figures[task][method][run], strict=True))
    try:
        return overall(Table(methods, upwards), baseline(experiment))
    except EvaluationError as error:
        raise EvaluationError(f"repeat {run + 1}: {error}" if experiment.repeats.finals > 1 else str(error)) from error


def _card(layout: Layout, model: str) -> RunCard:
    """A model's run card, empty where it is missing or damaged: costs are for reading, no run stops for them."""
    try:
        return read_run_card(layout.model(model)) or {}
    except EvaluationError:
        return {}


def write_cost(experiment: Experiment, layout: Layout) -> None:
    """Write `cost.json`: the seconds of each model's training and answering, and on what."""
    subsets = Subsets.read(layout) if layout.subsets.exists() else Subsets()
    cost = {}
    for model in models(experiment):
        steps = Steps(layout, model.name)
        card = _card(layout, model.name)
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
