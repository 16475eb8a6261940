"""The tasks of a run: their names, their groups and their weights, checked before anything is loaded.

Weights travel by name. The order of the tasks is `--task_names`, or the weights file's; bare numbers mean nothing
without it. Weights given make the method VisATB, none given EW, weights with any other method are an error.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.weights import read_weights
from llava.train.arguments import DataArguments, TrainingArguments, UsageError
from transformers_patch.weighter import WEIGHTERS

THE_ONE_TASK = "all"
"""The task of records that name none, where no tasks were given."""


@dataclass(frozen=True)
class TaskTable:
    """T tasks in N weighting units (a unit is a task, or a group of tasks that share a weight).

    Attributes:
        names: T task names in the order of `vitw_task_ids`; empty until the data have been read where none were given.
        units: for each task, its unit in 0 … N-1.
        unit_names: N names, of groups where there are any.
        method: the weighting method.
        weights: for VisATB λ of each of the N units, else None.
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    unit_names: tuple[str, ...]
    method: str
    weights: tuple[float, ...] | None

    def named_as(self, names: Sequence[str], expected: int | None = None) -> TaskTable:
        """Return this table, or the one of the tasks that the data turned out to hold where none were given."""
        if self.names:
            return self
        _check_number(expected, names)
        return replace(self, names=tuple(names), units=tuple(range(len(names))), unit_names=tuple(names))

    def task_weights(self) -> dict[str, float] | None:
        """Return λ by task name, or None where the method finds it while training."""
        if self.weights is None:
            return None
        return {name: self.weights[unit] for name, unit in zip(self.names, self.units, strict=True)}


def resolve_tasks(data: DataArguments, training: TrainingArguments) -> TaskTable:
    """Return the task table of a command line, with the method that it implies.

    Raises:
        UsageError: names, groups, weights and method that contradict each other, or weights that are no weights.
    """
    given = _read_weights(data.visatb_weights)
    names = _task_names(data, given)
    groups = _read_groups(data.task_groups, names)
    unit_names, units = _units(names, groups)
    method = _method(training.weight_method, given is not None)
    weights = None if given is None else _unit_weights(given, names, units, unit_names)
    return TaskTable(names, units, unit_names, method, weights)


def read_mapping(text: str, flag: str) -> dict[str, Any]:
    """Read a JSON object that is either in the file `text` or `text` itself."""
    source = text
    if not text.lstrip().startswith("{"):
        try:
            source = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{flag}: cannot read {text}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{flag}: {text} is not UTF-8 text: {error.reason} at byte {error.start}") from error
        except ValueError as error:  # a NUL in the name
            raise UsageError(f"{flag}: cannot read {text!r}: {error}") from error
    try:
        value = json.loads(source)
    except RecursionError as error:
        raise UsageError(f"{flag}: {text[:200]} is nested too deeply to be read") from error
    except ValueError as error:
        raise UsageError(f"{flag}: {text[:200]} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{flag}: {text} must hold a JSON object")
    return value


Weights = tuple[float, ...] | dict[str, float]
"""As given: numbers in the order of the tasks (or of the groups), or by name of a task (or of a group)."""


def _read_weights(values: Sequence[str]) -> Weights | None:
    words = [
        word for value in values for word in ([value] if os.path.isfile(value) else value.replace(",", " ").split())
    ]
    if not words:
        return None
    if len(words) == 1 and (words[0].endswith(".json") or os.path.isfile(words[0])):
        return _read_weights_file(words[0])
    try:
        weights = tuple(float(word) for word in words)
    except ValueError as error:
        raise UsageError(f"--visatb_weights must be numbers or one weights file: {' '.join(words)}") from error
    _check_weights(weights)
    return weights


def _read_weights_file(path: str) -> dict[str, float]:
    try:
        content = read_weights(Path(path))
    except EvaluationError as error:
        raise UsageError(f"--visatb_weights: {error}") from error
    tasks, weights = content["tasks"], content["weights"]
    # Tasks of fixed weight have no place in the computation of weights (nor in "tasks"), but they have a weight.
    ordered = {name: float(weights[name]) for name in [*tasks, *(name for name in weights if name not in tasks)]}
    _check_weights(tuple(ordered.values()))
    return ordered


def _check_weights(weights: Sequence[float]) -> None:
    for weight in weights:
        if not math.isfinite(weight) or weight < 0:
            raise UsageError(f"--visatb_weights: {weight} is not a weight (finite and not negative)")
    if not any(weights):
        raise UsageError("--visatb_weights: all weights are 0")


def _task_names(data: DataArguments, given: Weights | None) -> tuple[str, ...]:
    names = tuple(data.task_names)
    if not names and isinstance(given, dict):
        names = tuple(_expand(given, data.task_groups))
    if not names and given is not None:
        raise UsageError("--visatb_weights: bare numbers need --task_names to say which tasks they are for")
    if not names and data.task_groups:
        raise UsageError("--task_groups needs --task_names")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UsageError(f"--task_names: {', '.join(repeated)} named more than once")
    if names:
        _check_number(data.num_tasks, names)
    return names


def _check_number(expected: int | None, names: Sequence[str]) -> None:
    if expected is not None and expected != len(names):
        raise UsageError(f"--num_tasks {expected}, but there are {len(names)} tasks: {', '.join(names)}")


def _expand(given: Mapping[str, float], groups_text: str | None) -> list[str]:
    """Return the tasks of a weights file in order, each group's name replaced by its tasks."""
    groups = read_mapping(groups_text, "--task_groups") if groups_text else {}
    return [task for name in given for task in groups.get(name, [name])]


def _read_groups(text: str | None, names: Sequence[str]) -> dict[str, list[str]]:
    if text is None:
        return {}
    groups = read_mapping(text, "--task_groups")
    for group, tasks in groups.items():
        if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) for task in tasks):
            raise UsageError(f"--task_groups: group {group} must be a list of task names")
        unknown = [task for task in tasks if task not in names]
        if unknown:
            raise UsageError(
                f"--task_groups: {', '.join(unknown)} of group {group} not among the tasks: {', '.join(names)}"
            )
    repeated = [
        task for task, count in Counter(task for tasks in groups.values() for task in tasks).items() if count > 1
    ]
    if repeated:
        raise UsageError(f"--task_groups: {', '.join(repeated)} in more than one group")
    clash = [group for group, tasks in groups.items() if group in names and tasks != [group]]
    if clash:
        raise UsageError(f"--task_groups: {', '.join(clash)} is both a group and a task")
    return groups


def _units(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Units in the order of their first task; a task in no group is a unit of its own."""
    group_of = {task: group for group, tasks in groups.items() for task in tasks}
    unit_names = tuple(dict.fromkeys(group_of.get(name, name) for name in names))
    return unit_names, tuple(unit_names.index(group_of.get(name, name)) for name in names)


def _method(asked: str | None, weights_given: bool) -> str:
    if asked is None:
        return "VisATB" if weights_given else "EW"
    takes_weights = WEIGHTERS[asked].takes_weights
    if weights_given and not takes_weights:
        raise UsageError(f"--visatb_weights and --weight_method {asked} exclude each other: weights mean VisATB")
    if takes_weights and not weights_given:
        raise UsageError(f"--weight_method {asked} needs --visatb_weights")
    return asked


def _unit_weights(
    given: Weights, names: Sequence[str], units: Sequence[int], unit_names: Sequence[str]
) -> tuple[float, ...]:
    if isinstance(given, tuple):
        if len(given) not in (len(names), len(unit_names)):
            raise UsageError(f"--visatb_weights: {len(given)} weights for {len(names)} tasks: {', '.join(names)}")
        given = dict(zip(names if len(given) == len(names) else unit_names, given, strict=True))
    if set(given) == set(unit_names):
        return tuple(given[unit] for unit in unit_names)
    if set(given) != set(names):
        missing = [name for name in names if name not in given]
        extra = [name for name in given if name not in names]
        raise UsageError(f"--visatb_weights: weights missing for {missing}, not among the tasks: {extra}")
    by_unit: dict[int, float] = {}
    for name, unit in zip(names, units, strict=True):
        if by_unit.setdefault(unit, given[name]) != given[name]:
            raise UsageError(f"--visatb_weights: the tasks of group {unit_names[unit]} must share one weight")
    return tuple(by_unit[unit] for unit in range(len(unit_names)))
