"""`results.json`: the methods' test figures, its reader and writer, and what the figures change against the baseline.

A run is one training of a method. `runs` has the figures of each; where a file is older than that, every method has
one, whose figures are in `methods`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.errors import EvaluationError
from eval.files import read_if_there
from eval.overall import improvement, loss
from eval.repeats import repeat_name
from visatb.workdir.layout import Layout

Values = Sequence[float | None]  # a figure for each metric of a task, None where it is missing


@dataclass(frozen=True)
class Metric:
    """A task's metric: its name in score files, and its direction."""

    name: str
    higher_is_better: bool = True

    @property
    def sign(self) -> int:
        """1 where higher is better, else −1."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True)
class Results:
    """The content of `results.json`.

    Attributes:
        baseline: what ΔI and ΔE are relative to.
        metrics: task → its metrics; all figures of a task are in their order.
        methods: method → task → figures, means over its runs; None where they are still to come.
        runs: method → task → the figures of each run; empty in older files.
        repeats: method → its number of runs, 1 where it is not named.
        stl_runs: task → the models that stand for STL, one for each run; without them `STL:<task>`.
        waiting: task → the file from outside that its figures are to come from.
        delta_i, delta_e: method → ΔI% and ΔE%, means over runs.
        delta_tasks: the tasks that those are over: all that all methods have figures of.
        delta_runs: method → ΔI%, ΔE% and I_i% of each run; the file's alone, as `changes_by_run` computes them.
        delta_problem: why there is no ΔI and ΔE; "" where there is none.
        words: the first comparison in words (`visatb.workdir.words.Words`), as far as the file has them.
    """

    baseline: str
    tasks: Sequence[str]
    metrics: Mapping[str, Sequence[Metric]]
    methods: Mapping[str, Mapping[str, Values | None]]
    runs: Mapping[str, Mapping[str, Sequence[Values] | None]] = field(default_factory=dict)
    repeats: Mapping[str, int] = field(default_factory=dict)
    stl_runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    delta_i: Mapping[str, float] = field(default_factory=dict)
    delta_e: Mapping[str, float] = field(default_factory=dict)
    delta_tasks: Sequence[str] = ()
    delta_runs: Mapping[str, Any] = field(default_factory=dict)
    delta_problem: str = ""
    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, layout: Layout) -> Results | None:
        """The results of a work folder, None before there are any; EvaluationError where the file is damaged."""
        content = read_if_there(layout.results, ("tasks", "metrics", "methods"))
        try:
            return None if content is None else cls.from_json(content)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise EvaluationError(f"{layout.results}: damaged ({type(error).__name__}: {error})") from error

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """The results from what stands in the file, which an older version may have written."""
        first = {task: [model] for task, model in (content.get("stl_models") or {}).items()}
        tasks = [str(task) for task in content["tasks"]]
        return cls(
            baseline=str(content.get("baseline") or "EW"),
            tasks=tasks,
            metrics={
                task: [Metric(str(entry["metric"]), bool(entry.get("higher_is_better", True))) for entry in entries]
                for task, entries in content["metrics"].items()
            },
            methods={method: dict(row) for method, row in content["methods"].items()},
            runs={method: dict(row or {}) for method, row in (content.get("runs") or {}).items()},
            repeats={method: int(count) for method, count in (content.get("repeats") or {}).items()},
            stl_runs=first | {task: list(names) for task, names in (content.get("stl_runs") or {}).items() if names},
            waiting=dict(content.get("waiting") or {}),
            delta_i=_numbers(content.get("delta_i")),
            delta_e=_numbers(content.get("delta_e")),
            delta_tasks=[str(task) for task in content.get("delta_tasks", tasks)],
            delta_runs=dict(content.get("delta_runs") or {}),
            delta_problem=str(content.get("delta_problem") or ""),
            words=dict(content.get("words") or {}),
        )

    def as_json(self) -> dict[str, Any]:
        """What stands in the file, but for what is concluded from it (`visatb.workdir.conclusions`)."""
        content = {
            "baseline": self.baseline,
            "tasks": self.tasks,
            "metrics": {
                task: [{"metric": metric.name, "higher_is_better": metric.higher_is_better} for metric in metrics]
                for task, metrics in self.metrics.items()
            },
            "methods": self.methods,
            "runs": self.runs,
            "repeats": self.repeats,
            "stl_models": {task: models[0] for task, models in self.stl_runs.items()},
            "stl_runs": self.stl_runs,
            "waiting": self.waiting,
            "delta_i": self.delta_i,
            "delta_e": self.delta_e,
            "delta_tasks": self.delta_tasks,
            "delta_runs": self.delta_runs,
        }
        return content | ({"delta_problem": self.delta_problem} if self.delta_problem else {})

    def models_of(self, method: str, task: str) -> list[str]:
        """The models behind a method's figures of a task, one for each run: `EW`, `EW#2`, …; of STL the task's own."""
        if method == "STL":
            return list(self.stl_runs.get(task) or [f"STL:{task}"])
        return [repeat_name(method, repeat) for repeat in range(1, self.repeats.get(method, 1) + 1)]

    def runs_of(self, method: str, task: str) -> list[Values]:
        """A method's figures of a task, for each run those of its metrics; empty where there are none."""
        if runs := self.runs.get(method, {}).get(task):
            return list(runs)
        only = self.methods.get(method, {}).get(task)
        return [only] if only else []

    def signs_of(self, task: str) -> list[int]:
        """1 for each metric of a task where higher is better, else −1."""
        return [metric.sign for metric in self.metrics[task]]

    def changes_by_run(self, method: str) -> dict[str, list[float]]:
        """I_i of Eq. 9 in percent, in each run, against the baseline's run of the same seed.

        Of every task on which the method and the baseline have all figures, and the baseline's are positive.
        """
        changes = {}
        for task in self.tasks:
            runs = zip(self.runs_of(method, task), self.runs_of(self.baseline, task), strict=False)
            found = [_change(mine, base, self.signs_of(task)) for mine, base in runs]
            known = [change for change in found if change is not None]
            if known and len(known) == len(found):
                changes[task] = known
        return changes

    def changes(self, method: str) -> dict[str, float]:
        """The same as means over runs."""
        return {task: math.fsum(runs) / len(runs) for task, runs in self.changes_by_run(method).items()}

    def deltas_by_run(self, method: str) -> tuple[list[float], list[float]]:
        """ΔI% and ΔE% of each run of a method over `delta_tasks`; empty where a figure is missing."""
        by_task = self.changes_by_run(method)
        if not self.delta_tasks or any(task not in by_task for task in self.delta_tasks):
            return [], []
        runs = list(zip(*(by_task[task] for task in self.delta_tasks), strict=False))
        return [math.fsum(run) / len(run) for run in runs], [loss(run) for run in runs]


def _numbers(content: Mapping[str, Any] | None) -> dict[str, float]:
    """Those entries that are numbers."""
    return {method: value for method, value in (content or {}).items() if isinstance(value, int | float)}


def _change(mine: Values, base: Values, signs: Sequence[int]) -> float | None:
    """I_i% of one run; None where a figure is missing, or a baseline's is not positive."""
    pairs = [(a, b) for a, b in zip(mine, base, strict=False) if a is not None and b is not None and b > 0]
    if not pairs or len(pairs) < min(len(mine), len(base), len(signs)):
        return None
    return improvement([a for a, _ in pairs], [b for _, b in pairs], signs[: len(pairs)])
