"""The weights file: λ by task, and what it was computed from. `weighting_visatb.py` writes it, everybody reads it here.

A file made by hand needs `tasks` and `weights` alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypedDict

from eval.errors import EvaluationError
from eval.files import read_json

COMPONENTS = ("out", "in", "difficulty")
"""The three parts of λ, in the order of the file."""
WEIGHT_RANGE = (0.5, 2.0)
"""Where weights usually lie (section 3.5); `weighting_visatb.py`, which can be copied alone, has it too."""


class _Given(TypedDict):
    tasks: list[str]
    weights: dict[str, float]


class Shrinkage(TypedDict):
    """λ plain (`none`) and shrunken (`auto`), whichever `mode` says is used, and what the latter is computed from.

    `reliability`: the share of what differs that is no noise, by component; `scores`: C_out, C_in and D after
    shrinkage by component and unit; `weights`: λ by mode and task.
    """

    mode: str
    reliability: dict[str, float]
    scores: dict[str, dict[str, float | None]]
    weights: dict[str, dict[str, float]]


class Weights(_Given, total=False):
    """A weights file. `weights` may hold more tasks than `tasks`: those of fixed weight.

    All else is there where the weights were computed, for N units (tasks, or groups of tasks) in one order:
    `contributions`: N rows of N values, null where one is left out; `components`: each part of λ by unit;
    `mean_contributions`: C_out and C_in by unit; `intervals`: by task; `draws`: bootstrap draws made and kept.
    """

    components: dict[str, dict[str, float]]
    contributions: list[list[float | None]]
    mean_contributions: dict[str, dict[str, float | None]]
    difficulties: dict[str, float | None]
    temperature: float
    temperature_ranges: dict[str, list[float]]
    alpha: dict[str, float]
    groups: dict[str, list[str]]
    intervals: dict[str, dict[str, Any]]
    draws: dict[str, int]
    shrinkage: Shrinkage
    training_noise: dict[str, dict[str, Any]]
    warnings: list[str]
    guards: dict[str, Any]


def weighed_scores(weights: Weights) -> list[dict[str, float | None]]:
    """C_out, C_in and D by unit as λ was computed from them: as measured, or shrunken where the file says so."""
    if (shrinkage := weights.get("shrinkage")) and shrinkage["mode"] == "auto":
        return [shrinkage["scores"][part] for part in COMPONENTS]
    return [*(weights["mean_contributions"][part] for part in ("out", "in")), weights["difficulties"]]


def read_weights(path: Path) -> Weights:
    """A weights file, its weights finite and not negative; EvaluationError says what it lacks."""
    content = read_json(path)
    tasks, weights = (content.get(key) for key in ("tasks", "weights")) if isinstance(content, dict) else (None, None)
    if (
        not isinstance(weights, dict)
        or not isinstance(tasks, list)
        or not all(isinstance(task, str) and task in weights for task in tasks)
    ):
        raise EvaluationError(f'{path} must hold "tasks": [names] and "weights": {{name: number}} for them')
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise EvaluationError(f"{path}: the weight of {name} is not a number")
        if isinstance(weight, int) and weight.bit_length() > 1000:  # a float ends there
            raise EvaluationError(f"{path}: the weight of {name} is too large for a number")
        if not math.isfinite(weight) or weight < 0:
            raise EvaluationError(f"{path}: {weight} is not a weight (finite and not negative)")
    found: Weights = content
    return found


def read_computed(path: Path) -> Weights:
    """A weights file with all that it was computed from; EvaluationError where parts are missing or do not fit."""
    weights = read_weights(path)
    units = list(weights.get("difficulties", {}))
    matrix = weights.get("contributions", [])
    components, means = weights.get("components", {}), weights.get("mean_contributions", {})
    parts = [components.get(name, {}) for name in COMPONENTS] + [means.get(name, {}) for name in ("out", "in")]
    square = len(matrix) == len(units) and all(len(row) == len(units) for row in matrix)
    if not units or not square or any(list(part) != units for part in parts):
        raise EvaluationError(f"{path}: its parts are not all of the same units; make it anew with weighting_visatb.py")
    return weights
