"""What came out, for the page: test results of all methods with their charts, and the training losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.collect import PROXIES
from eval.metrics import find_measure
from eval.repeats import split_repeat
from visatb.report import svg
from visatb.report.load import Run, is_proxy
from visatb.workdir.results_file import Metric, Results
from visatb.workdir.verdict import ENOUGH, Change, Comparison
from visatb.workdir.words import signed

CURVES = {"loss": "Loss", "grad_norm": "Gradient norm", "learning_rate": "Learning rate"}  # as the Trainer logs them
MOST_COLUMNS = 10  # figures of a method that fit beside each other; where there are more, tasks are the rows


def results_table(run: Run, comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """Tables 1 and 3: test figures of all methods with ΔI and ΔE, the best and second marked; charts, comparisons."""
    results = run.results
    if not results:
        return None
    heads = [(task, index, m) for task in results.tasks for index, m in enumerate(results.metrics.get(task, []))]
    baseline = results.baseline
    columns = [_column(run, results, *head) for head in heads]
    rows = []
    for method in results.methods:
        cells = [column["cells"][method] for column in columns]
        deltas = [results.delta_i.get(method), results.delta_e.get(method)]
        rows.append(
            {
                "name": method,
                "cells": cells,
                "deltas": [("–" if d is None or method == baseline else f"{d:.2f}") for d in deltas],
                "mine": method == "VisATB",
                "baseline": method == baseline,
            }
        )
    _mark_deltas(rows)
    tasks = [(task, len(results.metrics.get(task, []))) for task in results.tasks]
    equal = run.experiment.stl_steps == "equal"
    return {
        "tasks": [(task, span) for task, span in tasks if span],
        "heads": [
            {"task": task, "label": column["label"], "arrow": column["arrow"]}
            for (task, *_), column in zip(heads, columns, strict=True)
        ],
        "turned": len(heads) > MOST_COLUMNS,
        "rows": rows,
        "baseline": baseline,
        "stl_steps": "the final run's number of optimizer steps" if equal else "one epoch of its task",
        "with_second": sum(name != "STL" for name in results.methods) > 2,
        "with_errors": any(cell["spread"] for column in columns for cell in column["cells"].values()),
        "charts": _result_charts(run, results, comparisons[0] if comparisons else None),
        "runs": comparisons[0].runs if comparisons else 1,
        "comparisons": comparison_table(comparisons),
        "classes": svg.method_classes(list(results.methods)),
    }


def _column(run: Run, results: Results, task: str, index: int, metric: Metric) -> dict[str, Any]:
    figures: dict[str, float | None] = {}
    for method, row in results.methods.items():
        values = row.get(task) or []
        figures[method] = values[index] if index < len(values) else None
    known = [value for value in figures.values() if value is not None]
    measure = find_measure(metric.name)
    percent = measure.percent and max(map(abs, known), default=2.0) <= 1.5
    rivals = sorted({v for m, v in figures.items() if v is not None and m != "STL"}, reverse=metric.higher_is_better)
    cells = {}
    for method, value in figures.items():
        cell = next((cell for cell in run.test_cells(task, method) if cell.metric == metric.name), None)
        spread = cell.stderr if cell else None
        cells[method] = {
            "text": "waits" if value is None else _figure(value, percent),
            "spread": "" if spread is None or value is None else _figure(spread, percent),
            "css": "waits" if value is None else _rank(value, rivals) if method != "STL" else "",
        }
    return {
        "label": measure.short + (" %" if percent else ""),
        "arrow": "↑" if metric.higher_is_better else "↓",
        "cells": cells,
    }


def _rank(value: float, rivals: Sequence[float]) -> str:
    if len(rivals) < 2:
        return ""
    return "best" if value == rivals[0] else "second" if value == rivals[1] and len(rivals) > 2 else ""


def _mark_deltas(rows: list[dict[str, Any]]) -> None:
    """The best and second ΔI (highest) and ΔE (lowest) among the methods that are not the baseline."""
    for column in (0, 1):
        texts = [row["deltas"][column] for row in rows]
        rivals = sorted({float(text) for text in texts if text != "–"}, reverse=column == 0)
        for row, text in zip(rows, texts, strict=True):
            row.setdefault("marks", []).append("" if text == "–" else _rank(float(text), rivals))


def _result_charts(run: Run, results: Results, comparison: Comparison | None) -> dict[str, Any]:
    methods = [name for name in results.methods if name != results.baseline]
    gains = {name: float(results.delta_i[name]) for name in methods if name in results.delta_i}
    errors = {name: float(results.delta_e[name]) for name in methods if name in results.delta_e}
    runs = {name: run.deltas(name) for name in gains}
    several = any(len(points) > 1 for points, _ in runs.values())
    shown = svg.delta_bars(gains, errors, "VisATB", runs) if len(gains) > 1 or (gains and several) else None
    charts: dict[str, Any] = {"deltas": shown, "several": several}
    ordered = sorted(methods, key=lambda name: (name == "VisATB", name == "EW"))
    changes = {name: results.changes(name) for name in ordered}
    classes = svg.method_classes(list(results.methods))
    tasks = [task for task in results.tasks if any(task in row for row in changes.values())]
    own = comparison.own if comparison else {}
    whiskers = {task: change.interval for task, change in own.items() if change.interval}
    charts["whiskers"] = comparison.method if comparison and whiskers else ""
    charts["changes"] = None
    if tasks:
        by_run = {name: results.changes_by_run(name) for name in ordered}
        charts["changes"] = svg.change_dots(tasks, changes, classes, whiskers, by_run)
    charts["legend"] = [(classes[name], name) for name in reversed(ordered)]
    return charts


def comparison_table(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """All comparisons as rows of texts; None where there is but the one that the headline is about."""
    if len(comparisons) < 2:
        return None
    verdicts = comparisons[0].runs >= ENOUGH
    rows = [
        {
            "name": f"{c.method} against {c.other}",
            "gain": _difference(c.gain),
            "error": _difference(c.error),
            "runs": signed(" ".join(f"{value:+.2f}" for value in c.gain.runs)),
            "p": "by itself" if c.adjusted is None else f"{c.adjusted:.3f}",
            "verdict": c.verdict,
        }
        for c in comparisons
    ]
    return {"rows": rows, "verdicts": verdicts, "kind": comparisons[0].kind, "others": len(comparisons) - 1}


def _difference(change: Change) -> tuple[str, str]:
    low, high = change.interval or (None, None)
    return signed(f"{change.value:+.2f}"), "–" if low is None else signed(f"{low:+.2f} to {high:+.2f}")


def losses(run: Run) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Task → method → (step, mean token loss) of first trainings; single-task runs as one method.

    Proxies only while there is no final.
    """
    histories = _first_trainings(run)
    stl = {run.model_of("STL", task) for task in run.tasks} if "STL" in run.methods else set()
    finals = [name for name in histories if name in stl or not is_proxy(name)]
    rank = {name: index for index, name in enumerate(run.methods)}
    models = sorted(finals or histories, key=lambda name: (rank.get(name.partition(":")[0], 99), name))
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for model in models:
        shown = "STL" if model in stl else model
        for entry in run.histories[model]:
            for key, value in entry.items():
                if key.startswith("task_loss/") and "step" in entry:
                    task = key.removeprefix("task_loss/")
                    lines.setdefault(task, {}).setdefault(shown, []).append((entry["step"], value))
    order = {task: index for index, task in enumerate(run.tasks)}
    return {
        task: {method: svg.thin(points) for method, points in lines[task].items()}
        for task in sorted(lines, key=lambda task: order.get(task, len(order)))
    }


def loss_charts(run: Run) -> dict[str, Any] | None:
    """A chart of training losses for each task, and the last losses as a table."""
    lines = losses(run)
    if not lines:
        return None
    methods = list(dict.fromkeys(method for task in lines.values() for method in task))
    classes = svg.method_classes([*run.methods, *(name for name in methods if name not in run.methods)])
    return {
        "panels": [
            (task, svg.step_lines(f"Training loss on {task}", task_lines, classes))
            for task, task_lines in lines.items()
        ],
        "legend": [(classes[name], name) for name in methods],
        "rows": [
            (task, [f"{task_lines[m][-1][1]:.4f}" if m in task_lines else "–" for m in methods])
            for task, task_lines in lines.items()
        ],
        "methods": methods,
    }


def curves(run: Run) -> list[dict[str, Any]]:
    """Loss, gradient norm and learning rate by step of first trainings: the methods' runs, then the proxies."""
    histories = _first_trainings(run)
    stl = {run.model_of("STL", task) for task in run.tasks} if "STL" in run.methods else set()
    proxies = [name for name in histories if is_proxy(name)]
    finals = [name for name in histories if not is_proxy(name) and name not in stl]
    order = {f"{kind}:{unit}": index for kind in PROXIES for index, unit in enumerate(_units(run))}
    parts = []
    for title, models in (("the methods' runs", finals), ("the proxies", proxies)):
        names = sorted(models, key=lambda name: (name.partition(":")[0], order.get(name, 0), name))
        classes = svg.method_classes(names)
        panels = []
        for key, label in CURVES.items():
            lines = {name: svg.thin(points) for name in names if (points := _points(run.histories[name], key))}
            if lines:
                panels.append((label, svg.step_lines(f"{label} of {title}", lines, classes)))
        if panels:
            parts.append({"title": title, "panels": panels, "legend": [(classes[name], name) for name in names]})
    return parts


def _first_trainings(run: Run) -> dict[str, list[dict[str, float]]]:
    """What was logged of every model's first training: a line for each model is enough to read."""
    return {name: history for name, history in run.histories.items() if split_repeat(name)[1] == 1}


def _units(run: Run) -> list[str]:
    return list(run.weights["difficulties"]) if run.weights else run.tasks


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in history if "step" in entry and key in entry]


def _figure(value: float, percent: bool) -> str:
    return f"{100 * value:.2f}" if percent else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
