"""How methods compare: ΔI% and ΔE% (Eq. 9) seed by seed, with what chance does to the differences.

A figure is truth + noise of training + noise of questions. The test questions are drawn anew, the same ones for every
model. From ENOUGH runs of each method on, seeds are drawn anew, too: run r of a method is compared with run r of the
other (they share their seeds), and what other seeds would add to the mean of S differences d_r is

    N(0, T ÷ S),    T = (S − 1)·var(d_r) ÷ χ²(S − 1)  −  what the questions alone make of var(d_r), at least 0.

The χ² makes the interval Student's t rather than the normal distribution's: three runs know little of how runs differ.
(Drawing three runs out of three with replacement would know even less, and not say so.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.overall import improvement
from eval.weights import Weights
from visatb.workdir.contents import Matrix
from visatb.workdir.redraw import DRAWS, Array, redraw
from visatb.workdir.results_file import Results
from visatb.workdir.scores import Cell

Interval = tuple[float, float]
Cells = Callable[[str, str], Sequence[Cell]]  # task, model → its test figures
LEVEL = (2.5, 97.5)
ENOUGH = 3  # runs of each method from which on there is a verdict
QUESTIONS, BOTH, TRAINING = "questions only", "questions and training", "training only"
CERTAIN = 1.959964 + 0.841621  # normal quantiles: 5% two-sided, and found four times out of five


@dataclass(frozen=True)
class Change:
    """A difference in percentage points with its 95% interval, None where nothing says how sure it is.

    `runs`: the difference in each run; `p`: two-sided, from the same draws as the interval.
    """

    value: float
    interval: Interval | None
    runs: tuple[float, ...] = ()
    p: float | None = None

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
        delta_i, delta_e: ΔI% and ΔE% of the two, means over runs.
        gain, error: the first's less the second's; an `error` below 0 is more even.
        by_task: task → I_i% of `method` less that of `other`.
        own: task → I_i% of `method` itself.
        exact: tasks that count as exact within the intervals, because they came without standard errors.
        tasks: how many tasks the figures are over, and of how many.
        runs: of each method; `kind`: what the intervals hold.
        spread: standard deviation of `gain` from run to run of both, in points of ΔI on the same questions; `source`:
            what it was estimated from; None and "" where nothing was trained twice.
        questions: standard deviation of `gain` over draws of the questions.
        adjusted: Holm's p among the comparisons beside the first; `family`: how many those are.
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
    runs: int = 1
    kind: str = QUESTIONS
    spread: float | None = None
    source: str = ""
    questions: float = 0.0
    adjusted: float | None = None
    family: int = 0

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

    @property
    def verdict(self) -> str:
        """What the runs bear on ΔI: ahead, behind, not told apart; "" below ENOUGH runs, which bear none."""
        if self.runs < ENOUGH:
            return ""
        side = self.gain.side if self.adjusted is None or self.adjusted < 0.05 else 0
        return {1: "ahead", -1: "behind", 0: "not told apart"}[side]

    def runs_needed(self, points: float, questions: float) -> int | None:
        """Runs of each method that tell a true difference of so many points of ΔI four times out of five.

        By (1.96 + 0.84)² · (questions² + spread² ÷ n) ≤ points², and two runs more for not knowing the spread. None
        where no number does, because of the questions' standard deviation, or where the spread is not known.
        """
        room = points**2 - (CERTAIN * questions) ** 2
        if self.spread is None or room <= 0:
            return None
        return max(ENOUGH, math.ceil((CERTAIN * self.spread) ** 2 / room + 1.96**2 / 2))


@dataclass(frozen=True)
class _Measured:
    """I_i% of all methods: `points`, float64[methods, runs, tasks]; `drawn`, the same with [..., DRAWS] behind."""

    methods: list[str]
    tasks: list[str]
    points: Array
    drawn: Array
    exact: list[str]

    def of(self, method: str) -> tuple[Array, Array]:
        index = self.methods.index(method)
        return self.points[index], self.drawn[index]


@dataclass(frozen=True)
class _Chance:
    """Turns the differences of single runs into a change with its interval."""

    rng: np.random.Generator

    def change(self, points: Array, drawn: Array, sure: bool) -> Change:
        """`points`: float64[runs], of each run; `drawn`: float64[runs, DRAWS], the same with other questions."""
        runs, sample = tuple(points.tolist()), drawn.mean(axis=0)
        value = float(points.mean())
        if len(runs) >= ENOUGH:
            sample = sample + self._training(points, drawn)
        elif not sure:
            return Change(value, None, runs)
        beyond = min((sample <= 0).sum(), (sample >= 0).sum())
        low, high = np.percentile(sample, LEVEL)
        return Change(value, (float(low), float(high)), runs, min(1.0, 2 * (float(beyond) + 1) / (DRAWS + 1)))

    def _training(self, points: Array, drawn: Array) -> Array:
        freedom = len(points) - 1
        of_questions = (drawn - points[:, None]).var(axis=0, ddof=1).mean()
        chance = self.rng.chisquare(freedom, size=DRAWS)
        variance = np.maximum(freedom * points.var(ddof=1) / chance - of_questions, 0)
        return np.asarray(np.sqrt(variance / len(points)) * self.rng.normal(size=DRAWS))


@dataclass(frozen=True)
class _Pairs:
    """Makes comparisons out of what was measured."""

    results: Results
    measured: _Measured
    chance: _Chance
    noise: float | None

    def compare(self, method: str, other: str) -> Comparison:
        m = self.measured
        (mine, mine_drawn), (theirs, theirs_drawn) = m.of(method), m.of(other)
        sure = [task not in m.exact for task in m.tasks]
        gain = self.chance.change((mine - theirs).mean(axis=1), (mine_drawn - theirs_drawn).mean(axis=1), any(sure))
        error = self.chance.change(_loss(mine) - _loss(theirs), _loss(mine_drawn) - _loss(theirs_drawn), any(sure))
        runs = len(mine)
        known = any(sure) or runs >= ENOUGH
        by_task = {
            task: self.chance.change(mine[:, k] - theirs[:, k], mine_drawn[:, k] - theirs_drawn[:, k], sure[k])
            for k, task in enumerate(m.tasks)
        }
        own = {task: self.chance.change(mine[:, k], mine_drawn[:, k], sure[k]) for k, task in enumerate(m.tasks)}
        between = float((mine - theirs).mean(axis=1).std(ddof=1)) if runs > 1 else None
        kind = QUESTIONS if runs < ENOUGH else BOTH if any(sure) else TRAINING
        return Comparison(
            method=method,
            other=other,
            baseline=self.results.baseline,
            delta_i=(float(mine.mean()), float(theirs.mean())),
            delta_e=(float(_loss(mine).mean()), float(_loss(theirs).mean())),
            gain=gain,
            error=error,
            by_task=by_task,
            own=own,
            exact=m.exact if known else list(m.tasks),
            tasks=(len(m.tasks), len(self.results.tasks)),
            runs=runs,
            kind=kind,
            spread=self.noise if between is None else between,
            source="proxies" if between is None and self.noise is not None else "runs" if between is not None else "",
            questions=float((mine_drawn - theirs_drawn).mean(axis=(0, 1)).std()) if any(sure) else 0.0,
        )


def compare(results: Results | None, cells: Cells, noise: float | None = None, seed: int = 0) -> list[Comparison]:
    """All methods against EW and against STL; first VisATB against EW (where one is missing, the best other method).

    `noise`: `noise_of_proxies`, for work folders whose methods were trained once. The first comparison is the one that
    was meant before any result was seen, and stands by itself; the p of the others are Holm's. Empty while there are
    no two methods with all their figures.
    """
    ready = _ready(results) if results else []
    if not results or len(ready) < 2:
        return []
    rng = np.random.default_rng(seed)
    measured = _measure(results, cells, ready, rng)
    pairs = _Pairs(results, measured, _Chance(rng), noise)
    gains = {name: float(measured.of(name)[0].mean()) for name in ready}
    found = [pairs.compare(method, other) for method, other in _pairs(ready, gains)]
    if not found:
        return []
    rest = found[1:]
    adjusted = holm([comparison.gain.p for comparison in rest])
    first = replace(found[0], family=len(rest))
    return [
        first,
        *(replace(comparison, adjusted=p, family=len(rest)) for comparison, p in zip(rest, adjusted, strict=True)),
    ]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down p of a family of tests, in their order; None where one has none."""
    order = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted


def noise_of_proxies(weights: Weights | None, matrix: Matrix | None) -> float | None:
    """How ΔI of two methods, trained once each, differs by chance, in points: by the repeats of the proxies.

    Each task's model with all of its data stands for a final run: with its standard deviation from training to training
    s_j and its figure V_j, the difference has the variance 2 · Σ (100·s_j ÷ V_j)² ÷ M². None without repeats.
    """
    if not weights or not matrix:
        return None
    unit_of = {task: unit for unit, members in (weights.get("groups") or {}).items() for task in members}
    rows = {"plus_mini": matrix.get("plus_mini") or {}, "single": matrix.get("single") or {}}
    parts = []
    for task, entry in (weights.get("training_noise") or {}).items():
        unit = unit_of.get(task, task)
        for kind, units in rows.items():
            deviation = entry["standard_deviation"].get(f"{kind}:{unit}")
            value = units.get(unit, {}).get(task)
            if deviation is not None and value is not None and np.mean(value) > 0:
                parts.append(100 * float(deviation) / float(np.mean(value)))
                break
    return math.sqrt(2 * math.fsum(part**2 for part in parts)) / len(parts) if parts else None


def _ready(results: Results) -> list[str]:
    """The methods that ΔI and ΔE are known of, with as many runs as the baseline."""
    baseline, tasks = results.baseline, results.delta_tasks
    known = [name for name in results.methods if name in results.delta_i]
    known = [name for name in known if name in results.delta_e or name == baseline]
    if baseline in results.methods and baseline not in known and known:
        known.append(baseline)
    counts = {name: [len(results.changes_by_run(name).get(task, [])) for task in tasks] for name in known}
    wanted = counts.get(baseline, [])
    return [name for name in results.methods if tasks and name in known and counts[name] == wanted and all(wanted)]


def _pairs(ready: Sequence[str], gains: Mapping[str, float]) -> list[tuple[str, str]]:
    """VisATB against EW, then every method against EW and against STL, each pair once."""
    method = "VisATB"
    rivals = [name for name in ready if name != method]
    if method not in ready or not rivals:
        return []
    first = "EW" if "EW" in rivals else max(rivals, key=lambda name: gains[name])
    pairs = [(method, first)]
    for other in ("EW", "STL"):
        if other in ready:
            pairs += [(name, other) for name in ready if name != other and (name, other) != ("STL", "EW")]
    return list(dict.fromkeys(pairs))


def _measure(results: Results, cells: Cells, methods: list[str], rng: np.random.Generator) -> _Measured:
    base = methods.index(results.baseline)
    points, drawn, exact = [], [], []
    for task in results.delta_tasks:
        figures = np.array([results.runs_of(method, task) for method in methods], dtype=float)
        names = [metric.name for metric in results.metrics[task]]
        rows = [[_in_order(cells(task, model), names) for model in results.models_of(m, task)] for m in methods]
        values = redraw(rows, figures, rng)
        if values is None:
            values = np.repeat(figures[..., None], DRAWS, axis=-1)
            exact.append(task)
        points.append(_percent(figures[..., None], base, results.signs_of(task))[..., 0])
        drawn.append(_percent(values, base, results.signs_of(task)))
    return _Measured(methods, list(results.delta_tasks), np.stack(points, axis=-1), np.stack(drawn, axis=2), exact)


def _percent(figures: Array, base: int, signs: Sequence[int]) -> Array:
    """I_i% of figures float64[methods, runs, metrics, B], float64[methods, runs, B]."""
    by_metric = np.moveaxis(figures, 2, 0)
    below = np.maximum(by_metric[:, base], np.finfo(float).tiny)
    return np.asarray(improvement(list(by_metric), list(below), signs))


def _loss(changes: Array) -> Array:
    """ΔE% from I_i% float64[runs, tasks, ...]: `eval.overall.loss` of every draw."""
    return np.asarray(np.maximum(0, -changes).mean(axis=1))


def _in_order(cells: Iterable[Cell], metrics: list[str]) -> list[Cell] | None:
    """Test cells in the metrics' order; None where one is missing."""
    found = {cell.metric: cell for cell in cells}
    return [found[metric] for metric in metrics] if all(metric in found for metric in metrics) else None
