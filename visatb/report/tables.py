"""The page's tables as CSV with all digits of every figure: links that hold the file, so that the page stays one.

Read back with any CSV reader; an empty cell is a figure that is not there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from eval.weights import COMPONENTS
from visatb.report.load import Run

Rows = list[list[Any]]


def csv_links(run: Run) -> dict[str, str]:
    """Name of a table → a data URI of it as CSV (UTF-8); of those that there are."""
    tables = {"matrix": _matrix(run), "contributions": _contributions(run), "weights": _weights(run)}
    tables |= {"results": _results(run)}
    return {name: f"data:text/csv;charset=utf-8,{quote(_text(rows))}" for name, rows in tables.items() if rows}


def _text(rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue()


def _matrix(run: Run) -> Rows:
    if not run.matrix:
        return []
    rows: Rows = [["model", "task", "value", "stderr"]]
    for name, figures, spread in run.matrix_rows():
        rows += [[name, task, figures[task], spread.get(task)] for task in run.matrix["tasks"] if task in figures]
    return rows


def _contributions(run: Run) -> Rows:
    if not run.weights:
        return []
    units = list(run.weights["difficulties"])
    lines = zip(units, run.weights["contributions"], strict=True)
    return [["from \\ to", *units], *([unit, *line] for unit, line in lines)]


def _weights(run: Run) -> Rows:
    if not run.weights:
        return []
    weights = run.weights
    columns: list[Mapping[str, float | None]] = [weights["mean_contributions"][part] for part in ("out", "in")]
    columns += [weights["difficulties"], *(weights["components"][part] for part in COMPONENTS)]
    unit_of = {task: unit for unit, tasks in (weights.get("groups") or {}).items() for task in tasks}
    head = ["task", "unit", "c_out", "c_in", "d", "lambda_out", "lambda_in", "lambda_d", "lambda"]
    ends = ["low", "high", "share_above_1"]
    rows: Rows = [[*head, *ends]]
    for task in weights["tasks"]:
        unit = unit_of.get(task, task)
        interval = weights.get("intervals", {}).get(task, {})
        figures = [column.get(unit) for column in columns]
        rows.append([task, unit, *figures, weights["weights"][task], *(interval.get(end) for end in ends)])
    return rows


def _results(run: Run) -> Rows:
    if not run.results:
        return []
    rows: Rows = [["method", "task", "metric", "value", "stderr"]]
    for method, figures in run.results.methods.items():
        for task in run.results.tasks:
            spread = {cell.metric: cell.stderr for cell in run.test_cells(task, method)}
            names = [metric.name for metric in run.results.metrics.get(task, [])]
            values = figures.get(task) or []
            rows += [[method, task, name, value, spread.get(name)] for name, value in zip(names, values, strict=False)]
        for key, deltas in (("delta_i", run.results.delta_i), ("delta_e", run.results.delta_e)):
            rows.append([method, "", key, deltas.get(method), None])
    return rows
