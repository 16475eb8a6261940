"""Validation matrix in, task weights out: inter-task contributions, intra-task difficulties and λ (Eq. 3–8, 10–12).

    python weighting_visatb.py MATRIX.json --output weights.json
    python weighting_visatb.py --scores DIR --split val --output weights.json

Legend: N weighting units (tasks, or groups of tasks), M validated tasks, R models, K repeats of a model's training,
B draws. Every function on arrays takes leading dimensions (`...`) and treats NaN as "left out". Standalone: numpy only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import reprlib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger("weighting_visatb")

Array = NDArray[np.float64]
Vectors = tuple[Array, Array, Array]  # C_out, C_in and D, float64[..., N] each
Units = Sequence[int] | NDArray[np.int64]
# task → model (of its repeats `mini`, `mini#2`, …) → float64[2, n]: per-sample values and their weights
Samples = Mapping[str, Mapping[str, Array]]
COMPONENTS = ("out", "in", "difficulty")
ANSWER_COUNTS = ("questions", "empty", "distinct", "most_common", "same_truth")  # of a model on a task
ALPHA = (0.25, 0.25, 0.5)
WEIGHT_RANGE = (0.5, 2.0)  # the paper's advice against over-balancing (section 3.5)
LOWEST_TEMPERATURE = 0.1
SHOWN_TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0)
NEARLY_ALL = 0.95  # share of equal answers from which a model counts as collapsed
FEWEST_QUESTIONS = 10  # below, equal answers are no wonder
CENTRAL_95 = (2.5, 97.5)
INTERVAL_KINDS = {"questions": "questions only", "both": "questions and training"}
FEW_DEGREES = 4  # below, Student's t is more than 40% wider than the normal distribution
DROP = "--on_degenerate drop (in an experiment file `weighting: {on_degenerate: drop}`)"


class WeightingError(ValueError):
    """Bad input; the message names the file, the task and the numbers, and what would mend them."""


# ---------------------------------------------------------------------------------------------- the method


def contributions(
    reached: Array, start: Array, unit_of: Units | None = None, denominator: Array | None = None
) -> Array:
    """C[i, j] = (V_j(i+mini) − V_j(mini)) / (V_j(j+mini) − V_j(mini)), Eq. 3 (Eq. 10 with base for mini).

    `reached`: float64[..., N, M], figure on task j of the model that had all of unit i; `start`: float64[..., M] of the
    model that had minis only; `unit_of`: int[M], each task's unit (identity without groups); `denominator`:
    float64[..., M] in place of Eq. 3's own. Returns float64[..., N, N]; with groups the mean over the tasks of column
    unit j. Holds for lower-is-better metrics as it is.
    """
    units = np.arange(reached.shape[-1]) if unit_of is None else np.asarray(unit_of)
    if denominator is None:
        denominator = _own(reached, units) - start
    per_task = (reached - start[..., None, :]) / denominator[..., None, :]
    return np.stack([_mean(per_task[..., units == unit]) for unit in range(reached.shape[-2])], axis=-1)


def difficulties(
    low: Array,
    high: Array,
    higher_is_better: Sequence[bool] | NDArray[np.bool_] | None = None,
    unit_of: Units | None = None,
) -> Array:
    """D[i] = 1 − V_i(mini) / V_i(i+mini), Eq. 6 (Eq. 11 and 12: `low` of mini_i, `high` of i alone).

    `low`, `high`: float64[..., M], figures on each task of the model with little and with all of it. For a
    lower-is-better metric the fraction is turned over. Returns float64[..., N]; with groups the mean over a unit's
    tasks. NaN where the divisor is not positive.
    """
    tasks = low.shape[-1]
    units = np.arange(tasks) if unit_of is None else np.asarray(unit_of)
    upwards = np.ones(tasks, dtype=bool) if higher_is_better is None else np.asarray(higher_is_better)
    above, below = np.where(upwards, low, high), np.where(upwards, high, low)
    per_task = 1 - above / np.where(below > 0, below, np.nan)
    return np.stack([_mean(per_task[..., units == unit]) for unit in range(units.max() + 1)], axis=-1)


def mean_contributions(matrix: Array) -> tuple[Array, Array]:
    """(C_out, C_in) of Eq. 4 and 5, float64[..., N] each: row and column means of C without its diagonal."""
    off = np.where(np.eye(matrix.shape[-1], dtype=bool), np.nan, matrix)
    return _mean(off), _mean(np.swapaxes(off, -1, -2))


def weight_components(c_out: Array, c_in: Array, difficulty: Array, temperature: float) -> tuple[Array, Array, Array]:
    """λ_out, λ_in and λ_D of Eq. 4, 5 and 7, float64[..., N] each; NaN entries get weight 1."""
    signed = (np.asarray(c_out, float), -np.asarray(c_in, float), np.asarray(difficulty, float))
    if not 0 < temperature < np.inf:
        raise WeightingError(f"the temperature must be a positive number, not {temperature}")
    out, inward, hard = (_scaled_softmax(score, temperature) for score in signed)
    return out, inward, hard


def visatb_weights(
    c_out: Array, c_in: Array, difficulty: Array, temperature: float = 0.5, alpha: Sequence[float] = ALPHA
) -> Array:
    """λ_VisATB = α_out·λ_out + α_in·λ_in + α_D·λ_D, Eq. 8; float64[..., N], mean 1.

    `alpha` = (out, in, difficulty), divided by its sum, which must be 1 within rounding ("0.33 0.33 0.33" will do).
    """
    shares = _shares(alpha)
    parts = weight_components(c_out, c_in, difficulty, temperature)
    return np.asarray(sum(share * part for share, part in zip(shares, parts, strict=True)))


def auto_temperature(c_out: Array, c_in: Array, difficulty: Array, alpha: Sequence[float] = ALPHA) -> float:
    """The smallest T ≥ 0.1 such that λ_VisATB stays within [0.5, 2] for every T' ≥ T (vectors float64[N])."""

    def outside(temperature: float) -> bool:
        weights = visatb_weights(c_out, c_in, difficulty, temperature, alpha)
        return bool(weights.min() < WEIGHT_RANGE[0] or weights.max() > WEIGHT_RANGE[1])

    # Scores that span r give weights within exp(±r/T): from r / ln 2 on all is well.
    spans = [np.nanmax(score) - np.nanmin(score) for score in (c_out, c_in, difficulty) if np.isfinite(score).any()]
    highest = max([LOWEST_TEMPERATURE, *(float(span) / np.log(2) for span in spans)])
    grid = np.geomspace(LOWEST_TEMPERATURE, highest * 1.001, 500)
    last = next((index for index in reversed(range(len(grid))) if outside(grid[index])), None)
    if last is None:
        return LOWEST_TEMPERATURE
    low, high = float(grid[last]), float(grid[last + 1])
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if outside(middle) else (low, middle)
    return high


def _own(reached: Array, units: NDArray[np.int64]) -> Array:
    return reached[..., units, np.arange(reached.shape[-1])]


def _mean(values: Array) -> Array:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    there = np.isfinite(values)
    count = there.sum(axis=-1)
    return np.where(count == 0, np.nan, np.where(there, values, 0).sum(axis=-1) / np.maximum(count, 1))


def _scaled_softmax(score: Array, temperature: float) -> Array:
    there = np.isfinite(score)
    logits = np.where(there, score, -np.inf) / temperature
    highest = np.where(there.any(axis=-1, keepdims=True), logits.max(axis=-1, keepdims=True), 0)
    powers = np.exp(logits - highest)
    total = np.maximum(powers.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
    return np.where(there, powers / total * there.sum(axis=-1, keepdims=True), 1.0)


def _shares(alpha: Sequence[float]) -> Array:
    shares = np.asarray(alpha, float)
    if shares.shape != (3,) or not (shares >= 0).all() or abs(shares.sum() - 1) > 0.02:
        raise WeightingError(f"the three α (out, in, difficulty) must be ≥ 0 and sum to 1, not {list(alpha)}")
    return np.asarray(shares / shares.sum())


# ---------------------------------------------------------------------------------------------- the validation matrix


@dataclass(frozen=True)
class Problem:
    """A validation matrix in arrays, with only what the chosen form needs (the rest NaN).

    A row is a model, a column a task. For tasks A and B the three forms have these rows, and read the cells with a
    letter: `s` for contributions, `d` for difficulties, `b` for both, `.` not at all::

        standard           A B     precise            A B     simple           A B
        0  mini            b b     0  mini            s s     0  base          s s   <- start
        1  plus_mini:A     b s     1  plus_mini:A     s s     1  single:A      b s   <- proxies, one per unit,
        2  plus_mini:B     s b     2  plus_mini:B     s s     2  single:B      s b      from row 1 on
                                   3  single_mini     d d     3  single_mini   d d
                                   4  single:A        d .
                                   5  single:B        . d
        low = 0, high = 1          low = 3, high = 4          low = 3, high = 1

    Difficulty compares row `low` with the task's own of the rows from `high` on. With groups a row's unit is a group,
    and `single_mini` holds, column by column, the model of that task's unit.

    `models`: R names of rows; `repeats`: float64[R, M, K], the figure of each repeat of a model's training, padded with
    NaN; `stderr`: float64[R, M, K], of each; `unit_of`: int[M], each task's unit. `order` lists the fixed tasks, too.
    `answers`: (model, task) → how many answers are empty, distinct and equal, where the matrix says so.
    """

    tasks: list[str]
    units: list[str]
    unit_of: NDArray[np.int64]
    higher_is_better: NDArray[np.bool_]
    models: list[str]
    repeats: Array
    stderr: Array
    low: int
    high: int
    order: list[str]
    fixed: dict[str, float]
    groups: dict[str, list[str]] | None
    answers: dict[tuple[str, str], Mapping[str, Any]]

    @cached_property
    def values(self) -> Array:
        """The figures that λ comes from, float64[R, M]: means over the repeats."""
        return _mean(self.repeats)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """int[R, M], how often the model of each cell was trained: as often as any of its tasks has figures."""
        places = np.arange(1, self.repeats.shape[-1] + 1)
        counts = np.where(np.isfinite(self.repeats), places, 0).max(axis=-1)
        for row, model in enumerate(self.models):
            of = self.unit_of if model == "single_mini" else np.zeros_like(self.unit_of)
            counts[row] = [counts[row, of == of[column]].max() for column in range(len(self.tasks))]
        return counts

    def standard_errors(self) -> Array:
        """Standard error of each of `values` by the questions alone, float64[R, M]; NaN where one is not known.

        Repeats answer the same questions and so may err alike: their mean is taken to be no surer than one of them.
        """
        unknown = (np.isfinite(self.repeats) & np.isnan(self.stderr)).any(axis=-1)
        return np.where(unknown, np.nan, _mean(self.stderr))

    def cells(self, column: int) -> list[tuple[int, int, str]]:
        """(row, repeat, name of the repeat) of all figures that the form reads in a column."""
        rows = np.flatnonzero(self.needed()[:, column])
        counts = np.maximum(self.counts[:, column], 1)
        return [(row, k, repeat_name(self.models[row], k)) for row in rows for k in range(counts[row])]

    def needed(self) -> NDArray[np.bool_]:
        """bool[R, M], true if the form reads the cell."""
        mask = np.zeros(self.repeats.shape[:-1], dtype=bool)
        mask[: len(self.units) + 1] = mask[self.low] = True
        mask[self.high + self.unit_of, np.arange(len(self.tasks))] = True
        return mask

    def reached(self, values: Array) -> Array:
        """The proxies' figures, float64[..., N, M]."""
        return values[..., 1 : len(self.units) + 1, :]

    def own(self, values: Array) -> Array:
        """V_j(j+mini), float64[..., M]."""
        return _own(self.reached(values), self.unit_of)

    def ends(self, values: Array) -> tuple[Array, Array]:
        """What difficulty compares: each task's figures with little data and with all, float64[..., M] each."""
        return values[..., self.low, :], values[..., self.high + self.unit_of, np.arange(len(self.tasks))]

    def denominators(self, values: Array) -> Array:
        """V_j(j+mini) − V_j(mini), turned so that a gain is positive; float64[..., M]."""
        gain = self.own(values) - values[..., 0, :]
        return np.where(self.higher_is_better, gain, -gain)


def build_problem(
    matrix: Mapping[str, Any],
    form: str = "standard",
    difficulty: str = "real",
    groups: Mapping[str, Sequence[str]] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Problem:
    """Check a validation matrix (its file's content) and lay it out in arrays; WeightingError names what is wrong."""
    if "weights" in matrix and not {"mini", "base"} & matrix.keys():
        raise WeightingError("this is a weights file, not a validation matrix (which has `mini` and `plus_mini`)")
    order = _names(matrix.get("tasks"), "the matrix's `tasks`")
    fixed = dict(fixed or {})
    tasks = [task for task in order if task not in fixed]
    groups = groups if groups is not None else matrix.get("groups")
    members = _check_groups(groups, tasks) if groups else {task: [task] for task in tasks}
    units = list(members)
    if len(units) < 2:
        raise WeightingError(f"weights need at least two tasks or groups beside the fixed ones, not {len(units)}")
    proxies, start = ("single", "base") if form == "simple" else ("plus_mini", "mini")
    precise = form == "simple" or difficulty == "precise"
    models = [start, *(f"{proxies}:{unit}" for unit in units)]
    if precise:
        models += ["single_mini"] + ([] if form == "simple" else [f"single:{unit}" for unit in units])
    known = {*order, *units, *fixed}
    _check_rows(matrix, proxies, known)
    higher = matrix.get("higher_is_better", {})
    if not isinstance(higher, dict) or not all(k in known and isinstance(v, bool) for k, v in higher.items()):
        shown = reprlib.repr(higher)
        raise WeightingError(f"the matrix's `higher_is_better` must map its tasks to true or false, not {shown}")
    repeats, stderr = _figures(matrix, models, tasks, known)
    return Problem(
        tasks=tasks,
        units=units,
        unit_of=np.array([next(k for k, unit in enumerate(units) if task in members[unit]) for task in tasks]),
        higher_is_better=np.array([higher.get(task, True) for task in tasks]),
        models=models,
        repeats=repeats,
        stderr=stderr,
        low=models.index("single_mini") if precise else 0,
        high=models.index(f"{'single' if precise else proxies}:{units[0]}"),
        order=order + [task for task in fixed if task not in order],
        fixed=fixed,
        groups={unit: list(names) for unit, names in members.items()} if groups else None,
        answers=_answers(matrix.get("answers", {}), models, tasks, known),
    )


def _check_rows(matrix: Mapping[str, Any], proxies: str, known: set[str]) -> None:
    """Refuse a matrix with proxies of what is no task of it: the figures of those tasks were lost, or left aside."""
    rows = matrix.get(proxies)
    strange = [str(name) for name in rows if name not in known] if isinstance(rows, Mapping) else []
    if strange:
        raise WeightingError(
            f"`{proxies}` has models of {some(strange)}, but there is no figure on these: the tasks are "
            f"{some(sorted(known))}. Score all models on all tasks, or name the tasks that are meant "
            "(--task_names with --scores, `tasks` in a matrix) and leave the other models out"
        )


def repeat_name(model: str, repeat: int) -> str:
    """The name of a model's repeat: `mini`, `mini#2`, `mini#3`, … for 0, 1, 2, …"""
    return model if repeat == 0 else f"{model}#{repeat + 1}"


def _answers(
    source: Any, models: list[str], tasks: list[str], known: set[str]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """What the matrix says about answers, by (repeat of a model, task); nothing where it says nothing."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for model in models:
        kind, _, unit = model.partition(":")
        entry = _entry(source, kind, "the matrix's `answers`", known)
        if unit:
            entry = _entry(entry, unit, f"the matrix's `answers`, `{kind}`", known)
        for task in tasks:
            for k, counts in enumerate(_listed(entry.get(task))):
                if counts is None:
                    continue
                numbers = [counts.get(key) for key in ANSWER_COUNTS] if isinstance(counts, Mapping) else [None]
                if not all(isinstance(number, int) and number >= 0 for number in numbers):
                    must = f"must give {', '.join(ANSWER_COUNTS)}"
                    raise WeightingError(f"the matrix's `answers`: {repeat_name(model, k)} on {task} {must}")
                found[repeat_name(model, k), task] = counts
    return found


def _listed(value: Any) -> list[Any]:
    """The repeats' entries of a cell, which stand in a list or alone."""
    return value if isinstance(value, list) else [value]


def _names(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise WeightingError(f"{what} must be a non-empty list of names")
    if len(set(value)) != len(value):
        raise WeightingError(f"{what} has a name twice: {reprlib.repr(value)}")
    if any(re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name) for name in value):
        raise WeightingError(f"{what} has a name with control letters: {reprlib.repr(value)}")
    return value


def some(names: Sequence[str], shown: int = 6) -> str:
    """The names, or the first of them and a count."""
    return ", ".join(names) if len(names) <= shown else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _check_groups(groups: Any, tasks: list[str]) -> dict[str, list[str]]:
    if not isinstance(groups, Mapping):
        raise WeightingError("groups must be an object {group: [tasks]}")
    members = {name: _names(names, f"group {name!r}") for name, names in groups.items()}
    listed = [task for names in members.values() for task in names]
    for task in tasks:
        if listed.count(task) != 1:
            raise WeightingError(f"task {task!r} must be in exactly one group; it is in {listed.count(task)}")
    unknown = sorted(set(listed) - set(tasks))
    if unknown:
        raise WeightingError(f"groups name what is no task to be weighed: {unknown}; tasks: {tasks}")
    return members


def _figures(matrix: Mapping[str, Any], models: list[str], tasks: list[str], known: set[str]) -> tuple[Array, Array]:
    """The figures and their standard errors, float64[R, M, K] each; NaN where there is none (or null)."""
    values = _cells(matrix, "the matrix", models, tasks, known)
    errors = _cells(matrix.get("stderr", {}), "the matrix's `stderr`", models, tasks, known)
    for (model, task), numbers in errors.items():
        if len(numbers) != len(values.get((model, task), numbers)):
            said = f"{len(numbers)} for {len(values[model, task])} repeats"
            raise WeightingError(
                f"the matrix's `stderr`: {model} on {task} has {said}; give one for each, null if unknown"
            )
    most = max(map(len, [*values.values(), *errors.values(), [0.0]]))
    arrays = np.full((2, len(models), len(tasks), most), np.nan)
    for array, found in zip(arrays, (values, errors), strict=True):
        for (model, task), numbers in found.items():
            array[models.index(model), tasks.index(task), : len(numbers)] = numbers
    return arrays[0], arrays[1]


def _cells(
    source: Any, what: str, models: list[str], tasks: list[str], known: set[str]
) -> dict[tuple[str, str], list[float]]:
    """The numbers of each cell of `models`, one per repeat, out of a nested object; NaN for null."""
    cells: dict[tuple[str, str], list[float]] = {}
    for model in models:
        kind, _, unit = model.partition(":")
        entry = _entry(source, kind, what, known)
        if unit:
            entry = _entry(entry, unit, f"{what}, `{kind}`", known)
        for name, value in entry.items():
            if name not in known:
                raise WeightingError(f"{what}, `{model}` names unknown {name!r}; known: {sorted(known)}")
            if name in tasks and value is not None:
                numbers = [
                    np.nan if number is None else _number(number, f"{what}: {repeat_name(model, k)} on {name}")
                    for k, number in enumerate(_listed(value))
                ]
                if not numbers:
                    raise WeightingError(f"{what}: {model} on {name} is an empty list; give a number per repeat")
                cells[model, name] = numbers
    return cells


def _entry(source: Any, key: str, what: str, known: set[str]) -> Mapping[str, Any]:
    entry = source.get(key, {}) if isinstance(source, Mapping) else source
    if not isinstance(source, Mapping) or not isinstance(entry, Mapping):
        raise WeightingError(f"{what}: `{key}` must stand in an object and be one ({{task: number}})")
    return entry


def _number(value: Any, what: str) -> float:
    try:
        number = np.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # JSON's integers have no end
        number = np.inf
    if not np.isfinite(number):
        raise WeightingError(f"{what} must be a finite number, not {reprlib.repr(value)}")
    return number


# ---------------------------------------------------------------------------------------------- solving it


def solve(problem: Problem, values: Array, on_degenerate: str, noise: Array) -> tuple[Array, Array]:
    """Contributions float64[..., N, N] and difficulties float64[..., N] of figures float64[..., R, M].

    A column without a positive denominator is NaN and so out of every mean; `noise`: float64[M], standard error of
    each denominator, which `clip` raises to twice that.
    """
    gain = problem.denominators(values)
    if on_degenerate == "clip":
        gain = np.fmax(gain, 2 * noise)
    gain = np.where(gain > 0, gain, np.nan)
    signed = np.where(problem.higher_is_better, gain, -gain)
    matrix = contributions(problem.reached(values), values[..., 0, :], problem.unit_of, signed)
    return matrix, difficulties(*problem.ends(values), problem.higher_is_better, problem.unit_of)


def check_complete(problem: Problem) -> None:
    """WeightingError if a cell that the form needs is missing, or a repeat of it; no policy mends what is not there."""
    lines = []
    for row, model in enumerate(problem.models):
        for k in range(max(1, problem.counts[row].max())):
            asked = problem.needed()[row] & (np.maximum(problem.counts[row], 1) > k)
            missing = np.flatnonzero(asked & np.isnan(problem.repeats[row, :, k]))
            if len(missing):
                lines.append(f"no figure of {repeat_name(model, k)} on {some([problem.tasks[j] for j in missing])}")
    if lines:
        shown = "; ".join(lines[:5]) + (f"; and of {len(lines) - 5} more models" if len(lines) > 5 else "")
        raise WeightingError(f"incomplete: {shown}; score every model on every task (`on_degenerate` mends no holes)")


def check_degenerate(problem: Problem, on_degenerate: str, noise: Array) -> list[str]:
    """Warnings for every denominator that is not positive or is lost in noise, and every undefined difficulty.

    WeightingError for what `on_degenerate` (error, drop, clip) does not mend.
    """
    fatal: list[str] = []
    mended: list[str] = []
    unsure: list[str] = []
    gains = problem.denominators(problem.values)
    figures = zip(problem.values[0], problem.own(problem.values), strict=True)
    for task, unit, gain, (start, end), spread in zip(
        problem.tasks, problem.unit_of, gains, figures, noise, strict=True
    ):
        names = problem.models[1 + unit], problem.models[0]
        text = f"{task}: {names[0]} gives {end:.6g}, {names[1]} {start:.6g}, a gain of {gain:.6g}"
        if gain <= 0:
            mends = on_degenerate == "drop" or (on_degenerate == "clip" and spread > 0)
            hint = " (clip needs standard errors)" if on_degenerate == "clip" and not mends else ""
            (mended if mends else fatal).append(f"{text}, which is no gain{hint}")
        elif gain < 2 * spread:
            unsure.append(f"{text}, which is within two standard errors ({2 * spread:.6g})")
    low, high = problem.ends(problem.values)
    divisor = np.where(problem.higher_is_better, high, low)
    for task, value in zip(problem.tasks, divisor, strict=True):
        if value <= 0:
            text = f"{task}: its difficulty divides by {value:.6g}"
            (mended if on_degenerate == "drop" else fatal).append(text)
    if fatal:
        hint = "" if on_degenerate == "drop" else f"; more data for that proxy, or {DROP}, would mend it"
        raise WeightingError(f"degenerate: {'; '.join(fatal)}{hint}")
    done = "column left out" if on_degenerate == "drop" else "denominator raised"
    return [f"{done}: {text}" for text in mended] + unsure


def check_answers(problem: Problem, on_degenerate: str) -> list[str]:
    """Warnings for every model that scores 0 on a task, or says one and the same there.

    What such a figure measures is whether the form of the answers was learnt. WeightingError under `error` where the
    start model scores 0 on every task: then all difficulties are 1.
    """
    if ((problem.values[0] == 0) & problem.higher_is_better).all() and on_degenerate == "error":
        raise WeightingError(
            f"degenerate: {problem.models[0]} scores 0 on every task, so that every difficulty is 1 and λ measures "
            "little but who learnt the form of the answers; look at its answers, train it longer (larger minis), or "
            f"go on all the same with {DROP}"
        )
    found = []
    for column, task in enumerate(problem.tasks):
        for row, k, model in problem.cells(column):
            nothing = problem.repeats[row, column, k] == 0 and problem.higher_is_better[column]
            fault = collapsed(problem.answers.get((model, task), {}))
            said = ["scores 0"] * bool(nothing) + ([fault] if fault else [])
            if said:
                effect = f"D({task}) and the contributions to {task}" if row == 0 else "the figures that rest on it"
                found.append(f"{task}: {model} {' and '.join(said)}; {effect} say little about what it has learnt")
    return found


def collapsed(counts: Mapping[str, Any]) -> str:
    """What is wrong with a model's answers to a task, as the predicate of a sentence; "" if nothing is, or is known.

    `counts` is the `answers` of a score file: ANSWER_COUNTS, and `text`, the most common answer.
    """
    asked = counts.get("questions", 0)
    if asked < FEWEST_QUESTIONS:
        return ""
    if counts["empty"] >= asked / 2:
        return f"gives an empty answer to {counts['empty']} of {asked} questions"
    if counts["most_common"] >= NEARLY_ALL * asked > counts["same_truth"]:
        return f"gives one answer, {str(counts.get('text', ''))!r}, to {counts['most_common']} of {asked} questions"
    return ""


@dataclass(frozen=True)
class _Answered:
    """Per-sample scores of a task by all models that the form reads there.

    `values`, `weights`: float64[Q, n], a row for each repeat of each model; `mean`: float64[rows, Q] takes the repeats'
    figures to those of the rows `rows` of the matrix.
    """

    values: Array
    weights: Array
    rows: NDArray[np.int64]
    mean: Array

    def figures(self, picked: Array) -> Array:
        """The matrix's figures, float64[rows], where question q is asked `picked[q]` times."""
        tiny = np.finfo(float).tiny
        return self.mean @ ((self.values * self.weights) @ picked / np.maximum(self.weights @ picked, tiny))

    def errors(self) -> Array:
        """What each question moves each repeat's figure by, times n: float64[Q, n]."""
        means = (self.values * self.weights).sum(axis=1) / self.weights.sum(axis=1)
        return self.weights * (self.values - means[:, None]) / self.weights.mean(axis=1)[:, None]


def _answered(problem: Problem, column: int, samples: Samples) -> _Answered | None:
    """The per-sample scores of a column; None if any that is needed is not there."""
    found, cells = samples.get(problem.tasks[column], {}), problem.cells(column)
    if not cells or not all(name in found for _, _, name in cells):
        return None
    values, weights = np.stack([found[name] for _, _, name in cells], axis=1)
    rows, owner = np.unique([row for row, _, _ in cells], return_inverse=True)
    mean = (np.arange(len(rows))[:, None] == owner).astype(float)
    return _Answered(values, weights, rows, mean / mean.sum(axis=1, keepdims=True))


def denominator_noise(problem: Problem, samples: Samples, trained: TrainingNoise | None = None) -> Array:
    """Standard error of every denominator, float64[M]: paired over per-sample scores, else from the cells' own.

    With `trained`, that of training is in it, too.
    """
    stderr = problem.standard_errors()
    noise = np.hypot(problem.own(stderr), stderr[0])
    for column, unit in enumerate(problem.unit_of):
        answered = _answered(problem, column, samples)
        if answered is None or answered.values.shape[-1] < 2:
            continue
        errors = answered.mean[[0, 1 + unit]] @ answered.errors()  # the needed rows begin with all of 0 to N
        noise[column] = (errors[1] - errors[0]).std(ddof=1) / np.sqrt(errors.shape[-1])
    if trained is None:
        return noise
    variance = trained.variance()
    return np.sqrt(noise**2 + variance[0] + problem.own(variance))


def draw(problem: Problem, samples: Samples, count: int, seed: int) -> Array | None:
    """`count` bootstrap matrices, float64[B, R, M]; None where nothing says how sure a figure is.

    A task with per-sample scores of all models has its questions drawn anew, the same ones for every model and repeat;
    the others get independent normal errors of their standard errors.
    """
    if not_sure(problem, samples):
        return None
    rng = np.random.default_rng(seed)
    drawn, stderr = np.repeat(problem.values[None], count, axis=0), problem.standard_errors()
    for column in range(len(problem.tasks)):
        answered = _answered(problem, column, samples)
        if answered is None:
            rows = np.flatnonzero(problem.needed()[:, column])
            drawn[:, rows, column] += rng.normal(size=(count, len(rows))) * stderr[rows, column]
            continue
        n = answered.values.shape[-1]
        for index in range(count):
            picked = np.bincount(rng.integers(n, size=n), minlength=n).astype(float)
            drawn[index, answered.rows, column] = answered.figures(picked)
    return drawn


def not_sure(problem: Problem, samples: Samples) -> list[str]:
    """The tasks with a figure that has neither per-sample scores nor a standard error."""
    lost = np.atleast_1d((np.isnan(problem.standard_errors()) & problem.needed()).any(axis=0))
    return [task for k, task in enumerate(problem.tasks) if lost[k] and _answered(problem, k, samples) is None]


# ---------------------------------------------------------------------------------------------- noise of training


@dataclass(frozen=True)
class TrainingNoise:
    """How far another training of each model would move its figures.

    The model of a figure V of model m on task j, in its k-th training, on a sample of n questions:

        V = truth + training + questions,    training ~ N(0, τ_j · q_mj),    q_mj = (standard error by questions)²

    So training is measured in units of the question's own noise: q goes with a rate p as p(1 − p), and stays what it is
    for a metric without an end, so that one τ serves all models of a task, of whatever level and metric. Repeats answer
    the SAME questions. What a question adds to all repeats of a model alike is in none of their differences; what it
    adds to one of them alone is, and is taken out:

        τ_j = mean over models with repeats of (variance between repeats ÷ q)  −  the same of (their interaction ÷ q)

    The first mean comes with few degrees of freedom, the sum of K − 1 over those models. The tasks lend each other what
    they know (see `_lend`), and the rest is drawn: `freedom` · mean ÷ χ²(`freedom`), so that few repeats give wide
    intervals (Student's t), not sharp ones. Models and tasks are drawn independently.

    `between`, `interaction`, `freedom`: float64[M]; `unit`: float64[R, M], √q of one training, 0 for a model that was
    not trained (base); `counts`: int[R, M], how many trainings each figure is the mean of.
    """

    between: Array
    interaction: Array
    freedom: Array
    unit: Array
    counts: NDArray[np.int64]

    def variance(self) -> Array:
        """Of the matrix's figures by training, best estimate, float64[R, M]."""
        share = np.maximum(self.between - self.interaction, 0)
        return np.asarray(share * self.unit**2 / np.maximum(self.counts, 1))

    def draw(self, count: int, seed: int) -> Array:
        """What `count` other trainings would add to the matrix's figures, float64[B, R, M]."""
        rng = np.random.default_rng([seed, 1])  # not the stream that draws the questions
        chance = rng.chisquare(self.freedom, size=(count, len(self.freedom)))
        share = np.maximum(self.freedom * self.between / chance - self.interaction, 0)
        spread = np.sqrt(share)[:, None] * self.unit / np.sqrt(np.maximum(self.counts, 1))
        return np.asarray(spread * rng.normal(size=spread.shape))


def training_noise(problem: Problem, samples: Samples) -> TrainingNoise | None:
    """The noise of training; None where no model was trained twice, or nothing says how sure its figures are.

    A task without any repeated model (single minis, say) takes the mean of the other tasks, and their fewest degrees.
    """
    if not_sure(problem, samples):
        return None
    tasks = range(len(problem.tasks))
    per_task = [_repeat_variances(problem, column, _answered(problem, column, samples)) for column in tasks]
    unit = np.stack([task.unit for task in per_task], axis=-1)
    freedom = np.array([task.freedom.sum() for task in per_task], dtype=float)
    if not freedom.any():
        return None
    between = np.array([_weighted(task.between, task.freedom) for task in per_task])
    interaction = np.array([_weighted(task.interaction, task.freedom) for task in per_task])
    interaction[freedom == 0] = interaction[freedom > 0].mean()
    unit[[model == "base" for model in problem.models]] = 0
    between, freedom = _lend(between, freedom)
    return TrainingNoise(between, interaction, freedom, unit, problem.counts)


def _lend(between: Array, freedom: Array) -> tuple[Array, Array]:
    """Variances and their degrees of freedom, float64[M] each, after the tasks have told each other what they know.

    How much chance makes M equal variances differ is known: by 2/ν of their squared mean. What they differ by beyond
    that, CV², says how little a task's variance tells of another's. The others' mean s² then counts as much as

        d = min(2 / CV², their own degrees of freedom)    degrees of freedom;    (ν · own + d · s²) / (ν + d)

    the linear empirical Bayes estimate (the idea of Smyth 2004, whose d comes from logarithms, which have none of 0).
    Tasks with equal noise thus pool it whole, unequal ones hardly. One without repeats takes the others' mean.
    """
    there = freedom > 0
    apart = 0.0
    if there.sum() > 1 and (mean := between[there].mean()) > 0:
        chance = 2 / freedom[there].mean()
        apart = max(0.0, (between[there].var(ddof=1) / mean**2 - chance) / (1 + chance))
    others = freedom.sum() - freedom
    lent = np.minimum(others, 2 / apart if apart > 0 else np.inf)
    pooled = np.where(others > 0, (freedom @ between - freedom * between) / np.maximum(others, 1), 0)
    total = freedom + np.where(there, lent, np.maximum(lent, 1))
    return (freedom * between + (total - freedom) * pooled) / total, total


@dataclass(frozen=True)
class _RepeatVariances:
    """Of one task, by row, float64[R]: shares in units of q = unit², NaN where a model has no repeats; its K − 1."""

    between: Array
    interaction: Array
    freedom: NDArray[np.int64]
    unit: Array


def _repeat_variances(problem: Problem, column: int, answered: _Answered | None) -> _RepeatVariances:
    rows = len(problem.models)
    between, interaction = np.full(rows, np.nan), np.full(rows, np.nan)
    unit, freedom = np.zeros(rows), np.zeros(rows, dtype=np.int64)
    errors = None if answered is None or answered.values.shape[-1] < 2 else answered.errors()
    cells = problem.cells(column)
    for row in {row for row, _, _ in cells}:
        places = [place for place, (other, _, _) in enumerate(cells) if other == row]
        count = len(places)
        squares = problem.stderr[row, column, :count] ** 2 if errors is None else _mean_squares(errors[places])
        unit[row] = np.sqrt(squares.mean())
        if count < 2 or not unit[row] > 0:
            continue
        freedom[row] = count - 1
        between[row] = problem.repeats[row, column, :count].var(ddof=1) / unit[row] ** 2
        # Standard errors alone do not say what the repeats' answers have in common: nothing is taken out.
        alone = (
            0.0 if errors is None else _mean_squares(errors[places] - errors[places].mean(axis=0)).sum() / (count - 1)
        )
        interaction[row] = alone / unit[row] ** 2
    return _RepeatVariances(between, interaction, freedom, unit)


def _mean_squares(errors: Array) -> Array:
    """Squared standard errors of means of n, float64[K], from what each question moves them by, float64[K, n]."""
    return np.asarray(errors.var(axis=1, ddof=1) / errors.shape[1])


def _weighted(values: Array, weights: NDArray[np.int64]) -> float:
    return float(np.where(weights > 0, values, 0) @ weights / max(weights.sum(), 1))


# ---------------------------------------------------------------------------------------------- shrinkage


def reliability(scores: Array, noise: Array) -> float:
    """Signal variance ÷ total variance of N scores, clipped to [0, 1].

        r = 1 − mean noise ÷ variance of the scores,   both over N − 1

    `scores`: float64[N] (C_out, C_in or D); `noise`: float64[N], variance by chance of each score's distance from their
    mean. With scores 0, 1, 2 (variance 1) and noise of 0.2 each: r = 1 − 0.6/2 ÷ 1 = 0.7.
    """
    there = np.isfinite(scores) & np.isfinite(noise)
    if there.sum() < 2 or not noise[there].any():
        return 1.0
    total = scores[there].var(ddof=1)
    chance = noise[there].sum() / (there.sum() - 1)
    return float(np.clip(1 - chance / total, 0, 1)) if total > 0 else 0.0


def shrink(scores: Array, share: float) -> Array:
    """Scores float64[..., N] moved towards their mean, so that `share` of each distance is left."""
    centre = _mean(scores)[..., None]
    return np.asarray(centre + share * (scores - centre))


def _noise_of(scores: Array) -> Array:
    """Variance by chance of each score's distance from the scores' mean, float64[N], from draws float64[B, N].

    From the middle 68% of the draws: few repeats give draws with long tails, whose plain variance has no end.
    """
    low, high = _quantiles(scores - _mean(scores)[:, None], (15.865, 84.135))
    return np.asarray(((high - low) / 2) ** 2)


# ---------------------------------------------------------------------------------------------- all of it together


@dataclass(frozen=True)
class Scores:
    """What λ is made of: contributions `c`, float64[..., N, N]; C_out, C_in and D, float64[..., N] each."""

    c: Array
    out: Array
    inward: Array
    hard: Array

    @property
    def vectors(self) -> Vectors:
        """C_out, C_in and D, in the order of COMPONENTS."""
        return self.out, self.inward, self.hard


@dataclass(frozen=True)
class _Settings:
    temperature: float
    alpha: Sequence[float]
    on_degenerate: str
    noise: Array


def weigh(
    problem: Problem,
    *,
    temperature: float | str = 0.5,
    alpha: Sequence[float] = ALPHA,
    on_degenerate: str = "error",
    bootstrap: int = 1000,
    seed: int = 0,
    samples: Samples | None = None,
    shrinkage: str = "none",
) -> dict[str, Any]:
    """The weights file's content; the arguments are the command's (`shrinkage`: its --shrink).

    `samples` are per-sample scores, float64[2, n] (values and their weights) by task and model. WeightingError where
    the matrix is not fit for it; what is doubtful stands in the content's `warnings` and is logged.
    """
    for name, number in (("number of bootstrap draws", bootstrap), ("bootstrap's seed", seed)):
        if number < 0:
            raise WeightingError(f"the {name} must not be negative, it is {number}")
    samples = samples or {}
    check_complete(problem)
    trained = training_noise(problem, samples)
    noise = denominator_noise(problem, samples, trained)
    warnings = check_answers(problem, on_degenerate) + check_degenerate(problem, on_degenerate, noise)
    measured = _scores(problem, problem.values, on_degenerate, noise)
    if not np.isfinite(measured.out).all():
        raise WeightingError("degenerate: so many columns are left out that no C_out remains")
    chosen = auto_temperature(*measured.vectors, alpha) if temperature == "auto" else float(temperature)
    settings = _Settings(chosen, alpha, on_degenerate, noise)
    if bootstrap and (lost := not_sure(problem, samples)):
        warnings.append(f"no intervals: standard errors or per-sample scores are missing on {some(lost)}")
    drawn = _draws(problem, samples, trained, bootstrap, seed) if bootstrap else {}
    kinds = {kind: _usable(problem, values, settings) for kind, values in drawn.items()}
    used, shrunken = _shrinkage(problem, measured, kinds, settings, shrinkage)
    content = (
        _figures_of(problem, measured, used, settings) | shrunken | _uncertainty(problem, kinds, settings, bootstrap)
    )
    if trained is not None:
        content["training_noise"] = _noise_by_task(problem, trained)
    warnings += _interval_warnings(problem, content, trained) + _range_warnings(problem, content["weights"])
    for text in warnings:
        logger.warning("%s", text)
    return content | {"warnings": warnings}


def _scores(problem: Problem, values: Array, on_degenerate: str, noise: Array) -> Scores:
    c, hard = solve(problem, values, on_degenerate, noise)
    return Scores(c, *mean_contributions(c), hard)


def _figures_of(problem: Problem, measured: Scores, used: Vectors, settings: _Settings) -> dict[str, Any]:
    """The part of the weights file that needs no draws; `used`: C_out, C_in and D as they enter the softmax."""
    alpha, chosen = settings.alpha, settings.temperature
    weights = _by_task(problem, visatb_weights(*used, chosen, alpha))
    ranges = {t: visatb_weights(*used, t, alpha) for t in sorted({*SHOWN_TEMPERATURES, chosen})}
    parts = zip(COMPONENTS, weight_components(*used, chosen), strict=True)
    content: dict[str, Any] = {
        "tasks": problem.order,
        "weights": weights,
        "components": {name: _by_unit(problem, part) for name, part in parts},
        "contributions": [[_plain(value) for value in row] for row in measured.c],
        "mean_contributions": {"out": _by_unit(problem, measured.out), "in": _by_unit(problem, measured.inward)},
        "difficulties": _by_unit(problem, measured.hard),
        "temperature": chosen,
        "temperature_ranges": {f"{t:.6g}": [float(w.min()), float(w.max())] for t, w in ranges.items()},
        "alpha": dict(zip(COMPONENTS, _shares(alpha).tolist(), strict=True)),
    }
    return content | ({"groups": problem.groups} if problem.groups else {})


def _draws(
    problem: Problem, samples: Samples, trained: TrainingNoise | None, count: int, seed: int
) -> dict[str, Array]:
    """Drawn matrices, float64[B, R, M], by what is drawn anew: `questions`; with repeats `both`: training, too."""
    drawn = draw(problem, samples, count, seed)
    if drawn is None:
        return {}
    return {"questions": drawn} | ({} if trained is None else {"both": drawn + trained.draw(count, seed)})


def _usable(problem: Problem, drawn: Array, settings: _Settings) -> Scores:
    """The scores of the drawn matrices that are not degenerate."""
    scores = _scores(problem, drawn, settings.on_degenerate, settings.noise)
    usable = np.isfinite(scores.out).all(axis=-1)
    if settings.on_degenerate == "error":
        usable &= (problem.denominators(drawn) > 0).all(axis=-1) & np.isfinite(scores.hard).all(axis=-1)
    return Scores(scores.c[usable], *(score[usable] for score in scores.vectors))


def _shrinkage(
    problem: Problem, measured: Scores, kinds: Mapping[str, Scores], settings: _Settings, mode: str
) -> tuple[Vectors, dict[str, Any]]:
    """C_out, C_in and D as they enter the softmax; and what the file says of both ways, where there are draws."""
    draws = kinds.get("both", kinds.get("questions"))
    if draws is None or not len(draws.out):
        if mode == "auto":
            raise WeightingError(
                "--shrink auto weighs what was measured against its noise, and there are no draws that tell it: give "
                "standard errors or per-sample scores, and a --bootstrap above 0"
            )
        return measured.vectors, {}
    pairs = list(zip(measured.vectors, draws.vectors, strict=True))
    shares = [reliability(score, _noise_of(drawn)) for score, drawn in pairs]
    out, inward, hard = (shrink(score, share) for score, share in zip(measured.vectors, shares, strict=True))
    both: dict[str, Vectors] = {"none": measured.vectors, "auto": (out, inward, hard)}
    weights = {name: visatb_weights(*used, settings.temperature, settings.alpha) for name, used in both.items()}
    return both[mode], {
        "shrinkage": {
            "mode": mode,
            "reliability": dict(zip(COMPONENTS, shares, strict=True)),
            "scores": {name: _by_unit(problem, score) for name, score in zip(COMPONENTS, both["auto"], strict=True)},
            "weights": {name: _by_task(problem, value) for name, value in weights.items()},
        }
    }


def _uncertainty(problem: Problem, kinds: Mapping[str, Scores], settings: _Settings, made: int) -> dict[str, Any]:
    """All intervals by kind; the widest kind's of λ stand in `intervals`, too, and decide on which side of 1 λ is."""
    if not kinds:
        return {}
    found = {kind: _intervals(problem, scores, settings, made) for kind, scores in kinds.items()}
    kind = list(found)[-1]
    intervals = found[kind].get("weights", {})
    return {
        "interval_kind": INTERVAL_KINDS[kind],
        "intervals": intervals,
        "draws": found[kind]["draws"],
        "side_of_1": {task: _side(interval) for task, interval in intervals.items()},
        "uncertainty": found,
    }


def _intervals(problem: Problem, scores: Scores, settings: _Settings, made: int) -> dict[str, Any]:
    """The 95% intervals of all figures over the usable draws, and how many those are."""
    draws = {"made": made, "kept": len(scores.out)}
    if not len(scores.out):
        return {"draws": draws}
    weights = visatb_weights(*scores.vectors, settings.temperature, settings.alpha)
    low, high = np.percentile(weights, CENTRAL_95, axis=0)
    above = (weights > 1).mean(axis=0)
    parts = zip(COMPONENTS, weight_components(*scores.vectors, settings.temperature), strict=True)
    return {
        "draws": draws,
        "weights": {
            task: {
                "low": float(low[unit]),
                "high": float(high[unit]),
                "level": 0.95,
                "share_above_1": float(above[unit]),
            }
            for task, unit in zip(problem.tasks, problem.unit_of, strict=True)
        },
        "components": {name: _ends_by_unit(problem, part) for name, part in parts},
        "contributions": [[_ends(pair) for pair in row] for row in np.stack(_quantiles(scores.c, CENTRAL_95), axis=-1)],
        "mean_contributions": {
            name: _ends_by_unit(problem, part) for name, part in (("out", scores.out), ("in", scores.inward))
        },
        "difficulties": _ends_by_unit(problem, scores.hard),
    }


def _side(interval: Mapping[str, float]) -> str:
    if interval["low"] > 1:
        return "above 1"
    return "below 1" if interval["high"] < 1 else "not told apart from 1"


def _ends_by_unit(problem: Problem, draws: Array) -> dict[str, dict[str, float] | None]:
    ends = np.stack(_quantiles(draws, CENTRAL_95), axis=-1)
    return {unit: _ends(pair) for unit, pair in zip(problem.units, ends, strict=True)}


def _ends(pair: Array) -> dict[str, float] | None:
    return {"low": float(pair[0]), "high": float(pair[1])} if np.isfinite(pair).all() else None


def _quantiles(draws: Array, percent: tuple[float, float]) -> tuple[Array, Array]:
    """Two percentiles over the first axis, of the draws that are there; NaN where none is."""
    if np.isfinite(draws).all():
        low, high = np.percentile(draws, percent, axis=0)
        return low, high
    ends = np.full((2, draws[0].size), np.nan)
    for index, column in enumerate(draws.reshape(len(draws), -1).T):
        if np.isfinite(column).any():
            ends[:, index] = np.percentile(column[np.isfinite(column)], percent)
    low, high = ends.reshape(2, *draws.shape[1:])
    return low, high


def _noise_by_task(problem: Problem, trained: TrainingNoise) -> dict[str, Any]:
    """The noise of training for the file: by task, the standard deviation of ONE training of each model."""
    deviations = np.sqrt(trained.variance() * np.maximum(trained.counts, 1))
    return {
        task: {
            "degrees_of_freedom": float(trained.freedom[column]),
            "standard_deviation": {
                problem.models[row]: float(deviations[row, column])
                for row in np.flatnonzero(problem.needed()[:, column])
            },
        }
        for column, task in enumerate(problem.tasks)
    }


def _interval_warnings(problem: Problem, content: Mapping[str, Any], trained: TrainingNoise | None) -> list[str]:
    if "draws" not in content:
        return []
    made, kept = content["draws"]["made"], content["draws"]["kept"]
    found = []
    if kept < made:
        share = 100 * kept / made
        left = f"the intervals are conditional on the other {share:.1f}%" if kept else "there are no intervals"
        found.append(f"{100 - share:.1f}% of the bootstrap draws are degenerate and left out: {left}")
    if kept and trained is None:
        which, cheap = ("each", "single_mini") if problem.models[0] == "base" else ("the", "mini")
        found.append(
            "the intervals are over the choice of validation questions only: every proxy was trained once, and how "
            f"far another seed would move λ is not in them; `repeats: {{proxies: {{{cheap}: 3}}}}` in the experiment "
            f"would put it there, at the cost of training {which} {cheap} model twice more"
        )
    if kept and trained is not None and (fewest := trained.freedom.min()) < FEW_DEGREES:
        found.append(
            f"the noise of training is known with {fewest:.3g} degrees of freedom only: the intervals are wide for it, "
            "and more repeats would narrow them"
        )
    return found


def _range_warnings(problem: Problem, weights: Mapping[str, float]) -> list[str]:
    low, high = WEIGHT_RANGE
    by_unit = {problem.units[unit]: weights[task] for task, unit in zip(problem.tasks, problem.unit_of, strict=True)}
    return [
        f"{unit}: weight {by_unit[unit]:.4f} is outside [{low}, {high:g}]; a higher temperature mends it"
        for unit in problem.units
        if not low <= by_unit[unit] <= high
    ]


def _by_task(problem: Problem, weights: Array) -> dict[str, float]:
    """The units' weights by task, with the fixed ones, in the order of the tasks."""
    found = dict(zip(problem.tasks, weights[problem.unit_of].tolist(), strict=True)) | problem.fixed
    return {task: found[task] for task in problem.order}


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _by_unit(problem: Problem, values: Array) -> dict[str, float | None]:
    return {unit: _plain(value) for unit, value in zip(problem.units, values, strict=True)}


def report(problem: Problem, content: Mapping[str, Any]) -> str:
    """The matrix and the weights file's content as tables for readers."""
    units, columns = problem.units, content["tasks"]
    means, hard = content["mean_contributions"], content["difficulties"]
    rows = {f"λ_{name}": part.values() for name, part in content["components"].items()}
    rows |= {"C_out": means["out"].values(), "C_in": means["in"].values(), "D": hard.values()}
    weights = {"λ_VisATB": content["weights"].values()}
    weights |= _interval_rows(content)
    ranges = content["temperature_ranges"].items()
    lines = ["Validation figures", *_table(problem.tasks, dict(zip(problem.models, problem.values, strict=True)))]
    lines += ["", "Contributions (of row to column)"]
    lines += _table(units, dict(zip(units, content["contributions"], strict=True)))
    lines += ["", "Weight components, mean contributions, difficulties", *_table(units, rows)]
    draws = content.get("draws", {})
    kept = (
        f" (95% over {draws['kept']} of {draws['made']} draws: {content['interval_kind']})" if draws.get("kept") else ""
    )
    lines += ["", f"Weights at T = {content['temperature']:.4g}{kept}", *_table(columns, weights)]
    lines += [f"  {task}: {side}" for task, side in content.get("side_of_1", {}).items()]
    lines += ["", "Range of the weights by temperature (the paper advises the lowest T that keeps 0.5 to 2.0)"]
    lines += [f"  T = {t:<8}  {low:.4f} to {high:.4f}" for t, (low, high) in ranges]
    lines += ["", f"--task_names {' '.join(columns)}"]
    return "\n".join([*lines, f"--visatb_weights {' '.join(f'{value:.4f}' for value in content['weights'].values())}"])


def _interval_rows(content: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Rows of the table of weights, by label: the intervals of each kind, and λ with and without shrinkage."""
    columns, rows = content["tasks"], {}
    for kind, found in reversed(content.get("uncertainty", {}).items()):
        where = ", questions" if kind == "questions" and "both" in content["uncertainty"] else ""
        labels = {"low": f"95% from{where}", "high": f"95% to{where}"} | (
            {} if where else {"share_above_1": "share > 1"}
        )
        for key, label in labels.items():
            if "weights" in found:
                rows[label] = [found["weights"].get(task, {}).get(key) for task in columns]
    if shrinkage := content.get("shrinkage"):
        other, label = ("auto", "λ shrunken") if shrinkage["mode"] == "none" else ("none", "λ plain")
        rows[label] = list(shrinkage["weights"][other].values())
    return rows


def _table(columns: Sequence[str], rows: Mapping[str, Iterable[float | None]]) -> list[str]:
    """Lines of a table; None and NaN are shown as a dash."""
    first = max(map(len, rows))
    widths = [max(8, len(name)) for name in columns]
    texts = {name: ["-" if v is None or np.isnan(v) else f"{v:.4f}" for v in values] for name, values in rows.items()}
    return [
        "  ".join(["", name.ljust(first), *(text.rjust(width) for text, width in zip(line, widths, strict=True))])
        for name, line in {"": list(columns), **texts}.items()
    ]


# ---------------------------------------------------------------------------------------------- files and command line


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; WeightingError names the file where there is none."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a path with NUL is a ValueError
        raise WeightingError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        content = json.loads(data, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise WeightingError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise WeightingError(f"{path}: not a file of this kind (JSON nested too deeply)") from error
    except ValueError as error:
        raise WeightingError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise WeightingError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 400 else float(text)  # Python refuses to read one of thousands of digits


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise WeightingError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def _fixed(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not name or not 0 <= weight < np.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=WEIGHT with a weight of 0 or more")
    return name, weight


def _temperature(text: str) -> float | str:
    return text if text == "auto" else float(text)


def nearest_matrix(folder: Path = Path()) -> Path | None:
    """The newest matrix file in `folder`, else in one of its folders or of its outputs/; None where there is none.

    By name only, and no deeper: data folders may hold millions of files.
    """
    for patterns in (["*matrix*.json"], ["*/matrix.json", "outputs/*/matrix.json"]):
        found = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
        if found:
            return max(found, key=lambda path: path.stat().st_mtime)
    return None


def _without_source() -> str:
    found = nearest_matrix()
    lines = ["which validation matrix? Give a matrix file, or --scores and the folder of the proxies' score files:"]
    shown = found or "MATRIX.json"
    lines += [f"  python weighting_visatb.py {shlex.quote(str(shown))} --output weights.json"]
    lines += ["  python weighting_visatb.py --scores DIR --split val --output weights.json"]
    said = f"({found} is the nearest matrix here" if found else "(no matrix file is near"
    return "\n".join([*lines, f"{said}; docs/weighting.md says what it holds, --help lists all options)"])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Task weights from a validation matrix (VisATB, Eq. 3-8).")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("matrix", nargs="?", type=Path, metavar="MATRIX.json", help="validation matrix")
    source.add_argument("--scores", type=Path, metavar="DIR", help="collect the score files under DIR instead")
    parser.add_argument("--task_names", nargs="+", metavar="TASK", help="tasks and their order (with --scores)")
    parser.add_argument("--split", default="val", help="split of the score files (default: val)")
    parser.add_argument("--temperature", type=_temperature, default=0.5, metavar="T|auto", help="(default: 0.5)")
    for name, value in zip(COMPONENTS, ALPHA, strict=True):
        parser.add_argument(f"--alpha-{name}", f"--alpha_{name}", type=float, default=value, help=f"(default: {value})")
    parser.add_argument("--form", choices=("standard", "simple"), default="standard", help="Eq. 3-6, or Eq. 10-11")
    parser.add_argument("--difficulty", choices=("real", "precise"), default="real", help="Eq. 6, or Eq. 12")
    parser.add_argument("--groups", type=Path, metavar="F", help="JSON object {group: [tasks]}")
    parser.add_argument("--fixed", type=_fixed, action="append", default=[], metavar="TASK=WEIGHT", help="repeatable")
    parser.add_argument(
        "--guard", type=_fixed, action="append", default=[], metavar="TASK=LIMIT", help="no part of λ; repeatable"
    )
    parser.add_argument("--guard_scores", type=Path, metavar="DIR", help="the guards' score files (split guard)")
    parser.add_argument("--on_degenerate", choices=("error", "drop", "clip"), default="error")
    parser.add_argument(
        "--shrink",
        choices=("none", "auto"),
        default="none",
        help="auto: move C and D towards their means by their noise",
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="B", help="draws for the intervals; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--output", type=Path, metavar="F", help="write the weights")
    parser.add_argument(
        "--matrix",
        type=Path,
        metavar="F",
        dest="matrix_output",
        help="write the matrix that --scores collects (default: OUTPUT with .matrix.json at its end)",
    )
    return parser


def _run(arguments: argparse.Namespace) -> str:
    groups = read_json(arguments.groups) if arguments.groups else None
    for name, members in (groups or {}).items():
        _names(members, f"{arguments.groups}: group {name!r}")
    samples: Samples = {}
    guards: dict[str, Any] = {}
    if arguments.scores:
        try:  # the score files' own reader; for a matrix this file needs nothing beside it
            from eval.collect import EvaluationError, collect
            from eval.guards import measure
            from eval.guards import warnings as guard_warnings
        except ModuleNotFoundError as error:
            raise WeightingError(f"--scores needs the project's eval folder beside this file ({error})") from error
        try:
            matrix, samples = collect(arguments.scores, arguments.split, arguments.task_names, groups)
            guards = measure(arguments.guard_scores, dict(arguments.guard)) if arguments.guard else {}
        except EvaluationError as error:
            raise WeightingError(str(error)) from error
    else:
        matrix = read_json(arguments.matrix)
    problem = build_problem(matrix, arguments.form, arguments.difficulty, groups, dict(arguments.fixed))
    content = weigh(
        problem,
        temperature=arguments.temperature,
        alpha=[getattr(arguments, f"alpha_{name}") for name in COMPONENTS],
        on_degenerate=arguments.on_degenerate,
        bootstrap=arguments.bootstrap,
        seed=arguments.seed,
        samples=samples,
        shrinkage=arguments.shrink,
    )
    if guards:
        said = guard_warnings(guards)
        for text in said:
            logger.warning("%s", text)
        content |= {"guards": guards, "warnings": [*content["warnings"], *said]}
        columns = {name: {"base": guard["base"], **guard["models"]} for name, guard in guards.items()}
        matrix["guards"] = {name: {m: one["value"] for m, one in column.items()} for name, column in columns.items()}
    if arguments.scores and (path := _matrix_output(arguments)):
        write_json(path, matrix)
    if arguments.output:
        write_json(arguments.output, content)
    return report(problem, content)


def _matrix_output(arguments: argparse.Namespace) -> Path | None:
    output: Path | None = arguments.output
    given: Path | None = arguments.matrix_output
    return given or (output and output.with_name(f"{output.stem}.matrix.json"))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.matrix is None and arguments.scores is None:
        parser.error(_without_source())
    if arguments.guard and not (arguments.scores and arguments.guard_scores):
        parser.error("--guard is measured from score files: give --scores and --guard_scores")
    if arguments.matrix_output and not arguments.scores:
        parser.error("--matrix names the file for the matrix that --scores collects; without --scores there is none")
    try:
        text = _run(arguments)
    except WeightingError as error:
        source, text = str(arguments.matrix or arguments.scores), str(error)
        print(f"error: {text if text.startswith(source) else f'{source}: {text}'}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
