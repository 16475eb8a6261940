"""The test figures in `results.json`, and what they change against the baseline (Eq. 9), run by run.

A run is one training of a method. `runs` in the file has the figures of each; where a file is older than that, every
method has one, whose figures are in `methods`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eval.repeats import repeat_name


def models_of(results: Mapping[str, Any], method: str, task: str) -> list[str]:
    """The models behind a method's figures of a task, one for each run: `EW`, `EW#2`, …; of STL the task's own."""
    count = int((results.get("repeats") or {}).get(method, 1))
    if method != "STL":
        return [repeat_name(method, repeat) for repeat in range(1, count + 1)]
    first = (results.get("stl_models") or {}).get(task, f"STL:{task}")  # an older file has no other
    return [str(model) for model in (results.get("stl_runs") or {}).get(task) or [first]]


def compared_tasks(results: Mapping[str, Any]) -> list[str]:
    """The tasks that ΔI and ΔE are over: those that all methods have figures of."""
    return list(results.get("delta_tasks", results["tasks"]))


def task_changes(results: Mapping[str, Any], method: str) -> dict[str, float]:
    """I_i of Eq. 9 in percent for every task on which the method and the baseline have all figures; mean over runs."""
    return {task: math.fsum(runs) / len(runs) for task, runs in task_changes_by_run(results, method).items()}


def task_changes_by_run(results: Mapping[str, Any], method: str) -> dict[str, list[float]]:
    """The same in each run, against the baseline's run of the same seed."""
    baseline = str(results.get("baseline"))
    changes = {}
    for task in results["tasks"]:
        runs = zip(runs_of(results, method, task), runs_of(results, baseline, task), strict=False)
        found = [_change(mine, base, signs_of(results, task)) for mine, base in runs]
        known = [change for change in found if change is not None]
        if known and len(known) == len(found):
            changes[task] = known
    return changes


def deltas_by_run(results: Mapping[str, Any], method: str) -> tuple[list[float], list[float]]:
    """ΔI% and ΔE% of each run of a method over `compared_tasks`; empty where a figure is missing."""
    by_task = task_changes_by_run(results, method)
    tasks = compared_tasks(results)
    if not tasks or any(task not in by_task for task in tasks):
        return [], []
    runs = list(zip(*(by_task[task] for task in tasks), strict=False))
    gains = [math.fsum(run) / len(run) for run in runs]
    return gains, [math.fsum(max(0.0, -value) for value in run) / len(run) for run in runs]


def runs_of(results: Mapping[str, Any], method: str, task: str) -> list[list[float | None]]:
    """A method's figures of a task, for each run those of its metrics; empty where there are none."""
    runs = ((results.get("runs") or {}).get(method) or {}).get(task)
    if runs:
        return [list(run) for run in runs]
    only = (results["methods"].get(method) or {}).get(task)
    return [list(only)] if only else []


def signs_of(results: Mapping[str, Any], task: str) -> list[int]:
    """1 for each metric of a task where higher is better, else −1."""
    return [1 if entry.get("higher_is_better", True) else -1 for entry in results["metrics"][task]]


def _change(mine: Sequence[float | None], base: Sequence[float | None], signs: Sequence[int]) -> float | None:
    """I_i% of one run; None where a figure is missing, or a baseline's is not positive."""
    parts = []
    for a, b, sign in zip(mine, base, signs, strict=False):
        if a is None or b is None or b <= 0:
            return None
        parts.append(sign * (a - b) / b)
    return 100 * math.fsum(parts) / len(parts) if parts else None
