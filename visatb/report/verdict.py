"""Is one method better on average, and more even, than another? ΔI% and ΔE% (Eq. 9) with what chance does to them.

Questions of the test sets are drawn anew (the same ones for every model), so the intervals say how far the figures
depend on which questions were asked; they know nothing of other seeds of the training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visatb.report.load import Cell, Run

Array = NDArray[np.float64]
Interval = tuple[float, float]
DRAWS = 2000
LEVEL = (2.5, 97.5)


@dataclass(frozen=True)
class Comparison:
    """`method` against `other`, both measured against `baseline`; figures in percent or percentage points.

    The intervals are None where nothing says how sure a figure is; `exact` names the tasks that count as exact
    within them because they came without standard errors. `tasks`: how many tasks the figures are over, and of how
    many.
    """

    method: str
    other: str
    baseline: str
    delta_i: tuple[float, float]
    delta_e: tuple[float, float]
    gain_interval: Interval | None
    error_interval: Interval | None
    exact: list[str]
    worse_tasks: list[str]
    tasks: tuple[int, int] = (0, 0)

    @property
    def gain(self) -> float:
        """ΔI% of `method` less that of `other`."""
        return self.delta_i[0] - self.delta_i[1]

    @property
    def error(self) -> float:
        """ΔE% of `method` less that of `other`; below 0 is more even."""
        return self.delta_e[0] - self.delta_e[1]

    @property
    def baseline_is_other(self) -> bool:
        return self.baseline == self.other


def compare(run: Run, seed: int = 0) -> Comparison | None:
    """VisATB against EW (where one is missing: against the best other method); None while there are no results."""
    results = run.results
    if not results:
        return None
    delta_i, delta_e = (_numbers(results.get(key, {})) for key in ("delta_i", "delta_e"))
    baseline = str(results.get("baseline", "EW"))
    ready = {name for name in delta_i if name in delta_e} | ({baseline} & set(results["methods"]))
    delta_i, delta_e = {baseline: 0.0, **delta_i}, {baseline: 0.0, **delta_e}
    method = "VisATB"
    rivals = [name for name in results["methods"] if name in ready and name != method]
    if method not in ready or not rivals:
        return None
    other = "EW" if "EW" in rivals else max(rivals, key=lambda name: delta_i[name])
    compared = compared_tasks(results)
    gains, errors, exact = _intervals(run, method, other, baseline, seed)
    return Comparison(
        method=method,
        other=other,
        baseline=baseline,
        delta_i=(delta_i[method], delta_i[other]),
        delta_e=(delta_e[method], delta_e[other]),
        gain_interval=gains,
        error_interval=errors,
        exact=exact,
        worse_tasks=[t for t, change in task_changes(results, method).items() if change < 0 and t in compared],
        tasks=(len(compared), len(results["tasks"])),
    )


def compared_tasks(results: Mapping[str, Any]) -> list[str]:
    """The tasks that ΔI and ΔE are over: those that all methods have figures of."""
    return list(results.get("delta_tasks", results["tasks"]))


def task_changes(results: Mapping[str, Any], method: str) -> dict[str, float]:
    """I_i of Eq. 9 in percent for every task on which the method and the baseline have all figures."""
    figures = results["methods"]
    base, mine = figures.get(str(results.get("baseline"))) or {}, figures.get(method) or {}
    changes = {}
    for task in results["tasks"]:
        pairs = list(zip(mine.get(task) or [], base.get(task) or [], strict=False))
        if not pairs or any(a is None or b is None or b <= 0 for a, b in pairs):
            continue
        signs = [1 if entry.get("higher_is_better", True) else -1 for entry in results["metrics"][task]]
        changes[task] = 100 * float(np.mean([sign * (a - b) / b for sign, (a, b) in zip(signs, pairs, strict=True)]))
    return changes


def _numbers(figures: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}


def _intervals(
    run: Run, method: str, other: str, baseline: str, seed: int
) -> tuple[Interval | None, Interval | None, list[str]]:
    assert run.results is not None
    rng = np.random.default_rng(seed)
    models = list(dict.fromkeys([method, other, baseline]))
    per_task: dict[str, list[Array]] = {method: [], other: []}
    exact = []
    tasks = compared_tasks(run.results)
    for task in tasks:
        metrics = [str(entry["metric"]) for entry in run.results["metrics"].get(task, [])]
        cells = [_cells(run, task, model, metrics) for model in models]
        points = [run.results["methods"].get(model, {}).get(task) for model in models]
        if any(not values or None in values for values in points):
            return None, None, []
        drawn = _draw(cells, np.array(points, dtype=float), rng)
        if drawn is None:
            drawn = np.repeat(np.array(points, dtype=float)[..., None], DRAWS, axis=-1)
            exact.append(task)
        signs = np.array([1 if m.get("higher_is_better", True) else -1 for m in run.results["metrics"][task]])
        base = np.maximum(drawn[models.index(baseline)], np.finfo(float).tiny)
        for name, changes in per_task.items():
            changes.append((signs[:, None] * (drawn[models.index(name)] - base) / base).mean(axis=0))
    if len(exact) == len(tasks):
        return None, None, exact
    gain, error = (
        100 * (fold(np.stack(per_task[method])) - fold(np.stack(per_task[other])))
        for fold in (lambda changes: changes.mean(axis=0), lambda changes: np.maximum(0, -changes).mean(axis=0))
    )
    return _interval(gain), _interval(error), exact


def _interval(values: Array) -> Interval:
    low, high = np.percentile(values, LEVEL)
    return float(low), float(high)


def _cells(run: Run, task: str, method: str, metrics: list[str]) -> list[Cell] | None:
    """A method's test cells of a task in the metrics' order."""
    found = {cell.metric: cell for cell in run.test_cells(task, method)}
    return [found[metric] for metric in metrics] if all(metric in found for metric in metrics) else None


def _draw(cells: list[list[Cell] | None], points: Array, rng: np.random.Generator) -> Array | None:
    """Figures drawn anew, float64[models, metrics, DRAWS]; None where a model's cells say nothing of their error."""
    present = [row for row in cells if row is not None]
    if len(present) < len(cells) or not present[0]:
        return None
    ids = present[0][0].ids
    if ids and all(cell.ids == ids for row in present for cell in row):
        return _resample(present, rng)
    spread = np.array([[np.nan if cell.stderr is None else cell.stderr for cell in row] for row in present])
    if not np.isfinite(spread).all():
        return None
    return points[..., None] + spread[..., None] * rng.normal(size=(*points.shape, DRAWS))


def _resample(cells: list[list[Cell]], rng: np.random.Generator) -> Array:
    n = len(cells[0][0].ids)
    values = np.array([[cell.values for cell in row] for row in cells])
    weights = np.array([[cell.weights for cell in row] for row in cells])
    drawn = np.empty((*values.shape[:2], DRAWS))
    for start in range(0, DRAWS, 100):  # 100 draws at once bound the memory at large test sets
        stop = min(start + 100, DRAWS)
        picked = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(stop - start)], axis=-1)
        totals = weights @ picked
        drawn[..., start:stop] = (values * weights) @ picked / np.where(totals > 0, totals, np.inf)
    return drawn


# ---------------------------------------------------------------------------------------------- in words


@dataclass(frozen=True)
class Words:
    """A headline, and the sentence with the numbers behind it; `tone` is good, bad, mixed or open."""

    tone: str
    headline: str
    sentence: str
    caution: str


def in_words(comparison: Comparison | None, waiting: str) -> Words:
    """What the results say, in words; `waiting` says what is still to come where there are none."""
    if comparison is None:
        return Words("open", "No answer yet", waiting, "")
    c = comparison
    average = _side(c.gain, c.gain_interval)
    if c.baseline_is_other:
        evenness, said, even = _evenness_at_baseline(c)
    else:
        evenness = _side(-c.error, c.error_interval and (-c.error_interval[1], -c.error_interval[0]))
        said = {1: "more even", -1: "less even", 0: "no clear difference in evenness"}[evenness]
        even = (
            f"Average loss on tasks that lost (ΔE): {c.delta_e[0]:.2f}% against {c.delta_e[1]:.2f}%, "
            f"{_points(c.error, c.error_interval)}."
        )
    tones = {(1, 1): "good", (1, 0): "good", (-1, -1): "bad", (-1, 0): "bad", (0, -1): "bad", (0, 1): "good"}
    against = "itself the baseline" if c.baseline_is_other else f"both against {c.baseline}"
    sentence = (
        f"Average change per task (ΔI, {against}): {c.delta_i[0]:+.2f}% against {c.delta_i[1]:+.2f}%, "
        f"{_points(c.gain, c.gain_interval)}. {even}"
    )
    unsure = (average, evenness) == (0, 0) or c.gain_interval is None
    tone = "open" if unsure else tones.get((average, evenness), "mixed")
    return Words(tone, _headline(c, average, evenness, said), signed(sentence), _caution(c))


def _headline(c: Comparison, average: int, evenness: int, said: str) -> str:
    if (average, evenness) == (0, 0):
        return f"{c.method} and {c.other}: no clear difference, neither on average nor in evenness"
    if c.gain_interval is None:
        said += "; how sure that is, is not known"
    first = {1: "better on average", -1: "worse on average", 0: "no clear difference on average"}[average]
    joint = "but" if average and evenness and average != evenness else "and"
    return f"{c.method} against {c.other}: {first}, {joint} {said}"


def signed(text: str) -> str:
    """The text with true minus signs before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def _side(value: float, interval: Interval | None) -> int:
    """1 or −1 for a difference; 0 where its interval holds 0, or it is 0."""
    if interval and interval[0] <= 0 <= interval[1]:
        return 0
    return int(np.sign(value))


def _points(value: float, interval: Interval | None) -> str:
    text = f"a difference of {value:+.2f} points"
    if interval is None:
        return f"{text} (no interval: standard errors are missing)"
    inside = ", within what chance alone can do" if interval[0] <= 0 <= interval[1] else ""
    return f"{text} (95% interval {interval[0]:+.2f} to {interval[1]:+.2f}{inside})"


def _evenness_at_baseline(c: Comparison) -> tuple[int, str, str]:
    tasks = ", ".join(c.worse_tasks)
    if not c.worse_tasks:
        return 1, f"no task is behind {c.other}", f"No task is behind {c.other} (ΔE 0.00%)."
    plural = "tasks are" if len(c.worse_tasks) > 1 else "task is"
    return (
        -1,
        f"{len(c.worse_tasks)} {plural} behind",
        f"Behind {c.other}: {tasks}; their loss averaged over all tasks (ΔE) is {c.delta_e[0]:.2f}%.",
    )


def _caution(c: Comparison) -> str:
    parts = []
    if c.tasks[0] < c.tasks[1]:
        parts.append(f"Over the {c.tasks[0]} of {c.tasks[1]} tasks that have all their test scores.")
    parts += ["One training run of each method: other seeds may differ by more than these figures say."]
    if c.gain_interval and c.exact:
        parts.append(f"Without standard errors, so counted as exact: {', '.join(c.exact)}.")
    if c.gain_interval:
        parts.append("The intervals come from drawing the test questions anew.")
    if c.baseline_is_other:
        parts.append(f"No single-task models were trained, so ΔI and ΔE are relative to {c.baseline}.")
    return " ".join(parts)
