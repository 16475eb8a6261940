"""What was measured, for the page: validation matrix, contributions, difficulties, and the weights made of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from eval.repeats import split_repeat
from eval.weights import COMPONENTS, weighed_scores
from visatb.report import guards, svg
from visatb.report.figures import interval_kind, unit_interval
from visatb.report.load import Run
from visatb.report.tree import read_tree
from visatb.workdir.contents import Matrix

MANY = 12  # units from which on a table of all pairs does not fit the page, and a map of them stands before it
STRONG = 81  # percent of a heat cell's colour above which its text turns to the other end of the grey scale


def matrix(run: Run) -> dict[str, Any] | None:
    """The validation matrix as rows of (figure, standard error) texts."""
    if not run.matrix:
        return None
    matrix, tasks = run.matrix, [str(task) for task in run.matrix["tasks"]]
    order = ["", *(matrix.get("groups") or {}), *tasks]  # rows as columns: a unit's own figure is on the diagonal
    kinds = ("base", "mini", "plus_mini", "single", "single_mini")

    def row_key(name: str) -> tuple[int, int]:
        kind, _, unit = split_repeat(name)[0].partition(":")
        return kinds.index(kind), order.index(unit) if unit in order else len(order)

    rows: list[dict[str, Any]] = [
        {"name": name, "cells": [(svg.plain(figures.get(task)), _spread(spread.get(task))) for task in tasks]}
        for name, figures, spread in sorted(run.matrix_rows(), key=lambda row: row_key(row[0]))
    ]
    counts = matrix.get("num_samples") or {}
    added = guards.columns(run)
    if added and not any(row["name"] == "base" for row in rows):
        rows.insert(0, {"name": "base", "cells": [("–", "")] * len(tasks)})
    for column in added.values():
        for row in rows:
            row["cells"].append((svg.plain(column.get(row["name"])), ""))
    tasks += [f"{name} (guard)" for name in added]
    counted = [counts.get(task) for task in tasks] if counts else None
    return {"tasks": tasks, "rows": rows, "counts": counted, "reading": _reading(run, matrix)}


def _reading(run: Run, matrix: Matrix) -> str:
    """What a reader has to know of the figures that is not plain: losses, and those that are better when lower."""
    if run.experiment.by_loss("val"):
        return "Mean loss of the true answers' tokens (validation: loss). Lower is better."
    lower = [task for task, upwards in matrix.get("higher_is_better", {}).items() if not upwards]
    return f"Lower is better for {', '.join(lower)}." if lower else ""


def contributions(run: Run) -> dict[str, Any] | None:
    """Figure 3a: cells with text, colour class and strength, and the means of rows and columns."""
    if not run.weights:
        return None
    weights = run.weights
    units = list(weights["difficulties"])
    off = [abs(v) for i, row in enumerate(weights["contributions"]) for j, v in enumerate(row) if i != j and v]
    top = max(off, default=1.0)
    rows: list[dict[str, Any]] = []
    for i, (unit, values) in enumerate(zip(units, weights["contributions"], strict=True)):
        cells = [_heat(value, top, i == j, unit, units[j]) for j, value in enumerate(values)]
        rows.append({"name": unit, "cells": cells, "mean": svg.plain(weights["mean_contributions"]["out"][unit], 4)})
    means = [svg.plain(weights["mean_contributions"]["in"][unit], 4) for unit in units]
    overview = svg.contribution_map(units, [row["cells"] for row in rows]) if len(units) > MANY else None
    return {"units": units, "rows": rows, "means": means, "top": f"{top:.2f}", "map": overview}


def _heat(value: float | None, top: float, own: bool, source: str, target: str) -> dict[str, Any]:
    if value is None:
        return {"text": "–", "css": "none", "share": 0, "hint": f"{source} to {target}: left out"}
    share = round(100 * min(1.0, abs(value) / top))
    css = "own" if own else ("pos" if value >= 0 else "neg") + (" strong" if share > STRONG else "")
    text = f"{value:.3f}".replace("-", "−")
    return {"text": text, "css": css, "share": share, "hint": f"{source} to {target}: {value:.4f}"}


def groups(run: Run) -> dict[str, Any] | None:
    """The groups that `groups: auto` found, their tree, and how clear a cut it was."""
    if not run.grouping:
        return None
    found = run.grouping
    silhouettes = sorted((int(count), value) for count, value in found["silhouettes"].items())
    return {
        "chart": svg.task_tree(read_tree(found), found["groups"]),
        "rows": [(name, ", ".join(members)) for name, members in found["groups"].items()],
        "chosen": found["asked"] == "auto",
        "silhouettes": ", ".join(f"{count}: {value:.2f}".replace("-", "−") for count, value in silhouettes),
    }


def difficulties(run: Run) -> dict[str, Any] | None:
    """Figure 3b, and whether the difficulties are the precise ones."""
    if not run.weights:
        return None
    values = run.weights["difficulties"]
    weighting = run.experiment.weighting
    precise = weighting.form == "simple" or weighting.difficulty == "precise"
    return {"chart": svg.difficulty_bars(values), "precise": precise}


def fixed_weights(weights: Mapping[str, Any]) -> dict[str, float]:
    """The weights of tasks that are in no unit."""
    groups = weights.get("groups") or {}
    weighed = {task for unit in weights["difficulties"] for task in groups.get(unit, [unit])}
    return {task: float(value) for task, value in weights["weights"].items() if task not in weighed}


def unit_weights(weights: Mapping[str, Any]) -> dict[str, float]:
    """λ by unit."""
    groups = weights.get("groups") or {}
    return {unit: float(weights["weights"][groups.get(unit, [unit])[0]]) for unit in weights["difficulties"]}


def weights(run: Run) -> dict[str, Any] | None:
    """Tables 2 and 5 with intervals, their chart, and the arguments that give these weights to the train command."""
    if not run.weights:
        return None
    weights = run.weights
    groups, totals = weights.get("groups") or {}, unit_weights(weights)
    parts: dict[str, list[tuple[str, float]]] = {}
    intervals, inner, rows = {}, {}, []
    for unit, total in totals.items():
        components = [weights["components"][part][unit] for part in COMPONENTS]
        shares = [weights["alpha"][part] * value for part, value in zip(COMPONENTS, components, strict=True)]
        parts[unit] = [(f"part-{part}", share) for part, share in zip(COMPONENTS, shares, strict=True)]
        interval = unit_interval(weights, unit)
        if interval:
            intervals[unit] = interval
        narrow = unit_interval(weights, unit, "questions")
        if narrow:
            inner[unit] = narrow
        rows.append(
            {
                "name": unit,
                "tasks": ", ".join(groups.get(unit, [])),
                "scores": [
                    svg.plain(score, 4)
                    for score in (
                        weights["mean_contributions"]["out"][unit],
                        weights["mean_contributions"]["in"][unit],
                        weights["difficulties"][unit],
                    )
                ],
                "components": [f"{value:.4f}" for value in components],
                "total": f"{total:.4f}",
                "interval": f"{interval[0]:.3f} – {interval[1]:.3f}" if interval else "–",
                "inner": f"{narrow[0]:.3f} – {narrow[1]:.3f}" if narrow else "–",
                "above": _above(weights, groups.get(unit, [unit])[0]),
            }
        )
    names = shlex.join(str(task) for task in weights["tasks"])
    values = " ".join(f"{weights['weights'][task]:.4f}" for task in weights["tasks"])
    return {
        "chart": svg.weight_bars(parts, intervals, inner),
        "rows": rows,
        "fixed": [(task, f"{value:.4f}") for task, value in fixed_weights(weights).items()],
        "with_intervals": bool(intervals),
        "with_inner": bool(inner),
        "kind": interval_kind(weights),
        "condition": interval_condition(weights),
        "temperature": f"{weights['temperature']:.4g}",
        "command": f"--task_names {names} --visatb_weights {values}{applied(run)}",
    }


def interval_condition(weights: Mapping[str, Any]) -> str:
    """What the intervals are conditional on, "" where no draw was left out (or the file is too old to say)."""
    draws = weights.get("draws") or {}
    if not weights.get("intervals") or draws.get("kept", 0) >= draws.get("made", 0):
        return ""
    return f"conditional on the {100 * draws['kept'] / draws['made']:.1f}% of the draws that are not degenerate"


def _above(weights: Mapping[str, Any], task: str) -> str:
    share = (weights.get("intervals") or {}).get(task, {}).get("share_above_1")
    return "–" if share is None else f"{100 * share:.0f}%"


def whatif(run: Run) -> dict[str, Any] | None:
    """The scores behind λ (shrunken ones where λ is) as arrays by unit, null where left out (weights.js)."""
    if not run.weights:
        return None
    weights = run.weights
    units = list(weights["difficulties"])
    scores = dict(zip(COMPONENTS, weighed_scores(weights), strict=True))
    return {
        "units": units,
        "groups": weights.get("groups") or {},
        "tasks": weights["tasks"],
        "fixed": fixed_weights(weights),
        **{part: [by_unit[unit] for unit in units] for part, by_unit in scores.items()},
        "temperature": weights["temperature"],
        "alpha": [weights["alpha"][part] for part in COMPONENTS],
        "guards": guards.slopes(run, units),
        "applied": applied(run),
    }


def applied(run: Run) -> str:
    """The train flag, after a blank, that says how the weights are applied where it is not in the loss; else ""."""
    apply = run.experiment.weighting.apply
    return "" if apply == "loss" else f" --apply_weights {apply}"


def _spread(value: float | None) -> str:
    return "" if value is None else f"± {value:.4f}"
