"""Is one method better on average, and more even, than another? ΔI% and ΔE% (Eq. 9) with what chance does to them.

Questions of the test sets are drawn anew (the same ones for every model), so the intervals say how far the figures
depend on which questions were asked; they know nothing of other seeds of the training.
"""

from __future__ import annotations

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
class Change:
    """A difference in percentage points with its 95% interval, None where nothing says how sure it is."""

    value: float
    interval: Interval | None

    @property
    def side(self) -> int:
        """1 or −1 for a clear difference, 0 for one within its interval; by its sign where there is no interval."""
        if self.interval and self.interval[0] <= 0 <= self.interval[1]:
            return 0
        return int(np.sign(self.value))


@dataclass(frozen=True)
class Comparison:
    """`method` against `other`, both measured against `baseline`.

    Attributes:
        delta_i, delta_e: ΔI% and ΔE% of the two.
        gain, error: the first's less the second's; an `error` below 0 is more even.
        by_task: task → I_i% of `method` less that of `other`.
        own: task → I_i% of `method` itself.
        exact: tasks that count as exact within the intervals, because they came without standard errors.
        tasks: how many tasks the figures are over, and of how many.
    """

    method: str
    other: str
    baseline: str
    delta_i: tuple[float, float]
    delta_e: tuple[float, float]
    gain: Change
    error: Change
    by_task: dict[str, Change]
    own: dict[str, Change]
    exact: list[str]
    tasks: tuple[int, int]

    def on_side(self, side: int) -> list[str]:
        """The tasks on which `method` is clearly ahead (1), clearly behind (−1), or neither (0)."""
        return [task for task, change in self.by_task.items() if change.side == side and task not in self.unsure]

    @property
    def unsure(self) -> list[str]:
        """Tasks without an interval where others have one."""
        return [task for task, change in self.by_task.items() if self.gain.interval and change.interval is None]

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
    tasks = compared_tasks(results)
    mine, theirs = ({t: c for t, c in task_changes(results, name).items() if t in tasks} for name in (method, other))
    drawn, exact = _draw_changes(run, (method, other), baseline, seed)
    none: Interval | None = None
    gain, error, by_task, own = none, none, dict.fromkeys(mine, none), dict.fromkeys(mine, none)
    if len(exact) < len(tasks):
        gain, error = _interval(_mean(drawn[0]) - _mean(drawn[1])), _interval(_loss(drawn[0]) - _loss(drawn[1]))
        sure = [(place, task) for place, task in enumerate(tasks) if task not in exact]
        by_task |= {task: _interval(drawn[0, place] - drawn[1, place]) for place, task in sure}
        own |= {task: _interval(drawn[0, place]) for place, task in sure}
    return Comparison(
        method=method,
        other=other,
        baseline=baseline,
        delta_i=(delta_i[method], delta_i[other]),
        delta_e=(delta_e[method], delta_e[other]),
        gain=Change(delta_i[method] - delta_i[other], gain),
        error=Change(delta_e[method] - delta_e[other], error),
        by_task={task: Change(mine[task] - theirs[task], by_task[task]) for task in mine if task in theirs},
        own={task: Change(value, own[task]) for task, value in mine.items()},
        exact=exact,
        tasks=(len(tasks), len(results["tasks"])),
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


def _draw_changes(run: Run, methods: tuple[str, str], baseline: str, seed: int) -> tuple[Array, list[str]]:
    """I_i% of the two methods drawn anew, float64[2, tasks, DRAWS], and the tasks whose figures stay as they are."""
    results = run.results or {}
    rng = np.random.default_rng(seed)
    models = [*methods, baseline]
    changes, exact = [], []
    for task in compared_tasks(results):
        metrics = results["metrics"][task]
        points = np.array([results["methods"][model][task] for model in models], dtype=float)
        cells = [_cells(run, task, model, [str(entry["metric"]) for entry in metrics]) for model in models]
        drawn = _draw(cells, points, rng)
        if drawn is None:
            drawn = np.repeat(points[..., None], DRAWS, axis=-1)
            exact.append(task)
        signs = np.array([1 if entry.get("higher_is_better", True) else -1 for entry in metrics])[:, None]
        base = np.maximum(drawn[2], np.finfo(float).tiny)
        changes.append([100 * (signs * (drawn[place] - base) / base).mean(axis=0) for place in (0, 1)])
    return np.array(changes, dtype=float).reshape(-1, 2, DRAWS).swapaxes(0, 1), exact


def _mean(changes: Array) -> Array:
    return np.asarray(changes.mean(axis=0))


def _loss(changes: Array) -> Array:
    return np.asarray(np.maximum(0, -changes).mean(axis=0))


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
    noise = rng.normal(size=(*points.shape, DRAWS))
    if np.array_equal(points[1], points[2]) and present[1] == present[2]:
        noise[2] = noise[1]  # the second method is the baseline itself
    return points[..., None] + spread[..., None] * noise


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
