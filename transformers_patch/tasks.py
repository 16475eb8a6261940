"""What a user of the mix-in says about tasks: a column in the data, λ by name; checked before anything is done.

Legend: T tasks, N weighting units (tasks, or task groups).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from transformers_patch.weighter import WEIGHTERS, Weighter

_REFUSED_ARGUMENTS = {
    "packing": "packed rows do not say whose their tokens are",
    "eval_packing": "packed rows do not say whose their tokens are",
    "padding_free": "rows without padding do not say whose their tokens are",
    "label_smoothing_factor": "label smoothing is not part of the weighted loss",
    "use_liger_kernel": "Liger puts a forward of its own in the place of the weighted one",
}
_REFUSED_OBJECTS = {
    "compute_loss_func": "the loss is the weighted one",
    "compute_metrics": "evaluation gives the loss of each task and keeps no predictions",
    "model_init": "a model made anew would lack the weighted loss: pass the model",
}


def check_stock_options(args: Any, options: Mapping[str, Any]) -> None:
    """ValueError where the Trainer's arguments or keyword options would change the loss, or be without effect."""
    wanted = [(name, getattr(args, name, None), why) for name, why in _REFUSED_ARGUMENTS.items()]
    wanted += [(name, options.get(name), why) for name, why in _REFUSED_OBJECTS.items()]
    for name, value, why in wanted:
        if value:
            raise ValueError(f"{name} cannot be combined with task weights ({why}): leave it out")
    if getattr(args, "loss_type", "nll") not in ("nll", "chunked_nll"):
        raise ValueError(f"loss_type {args.loss_type} cannot be combined with task weights: use nll")


def names_in_column(dataset: Any, column: str | None) -> list[str]:
    """Return the names of tasks in `column` of a data set with columns, in the order of the alphabet.

    Raises:
        ValueError: there is no such column to be read, or something else than names is in it.
    """
    if column is None or not hasattr(dataset, "unique"):
        kind = type(dataset).__name__
        raise ValueError(f"which tasks there are cannot be read from {kind} as train_dataset: pass task_names")
    if column not in dataset.column_names:
        raise ValueError(
            f"train_dataset has no column {column!r} with the task of each sample (it has "
            f"{', '.join(dataset.column_names)}): add one, or name it by task_column"
        )
    names = dataset.unique(column)
    if bad := [name for name in names if not isinstance(name, str) or not name]:
        raise ValueError(f"column {column!r} of train_dataset must hold the names of tasks, but holds {bad[0]!r}")
    return sorted(names)


def make_weighter(
    given: Weighter | Mapping[str, float] | str | None, options: Any, names: Sequence[str], units: np.ndarray
) -> Weighter:
    """Return the weighter over the N units that `units` int64[T] numbers.

    Args:
        given: λ by the names of tasks, the name of a method, a weighter, or None for `options.weight_method`.
        options: a `WeightingArguments`, and its `seed`.

    Raises:
        ValueError: unknown names, weights that are missing, units that do not fit.
    """
    if units.shape != (len(names),):
        raise ValueError(f"task_units {units.tolist()} do not map the {len(names)} tasks: one unit for each is needed")
    if not isinstance(given, Weighter):
        given = _by_name(given, options, names, units)
    if units.max() >= given.num_tasks:
        raise ValueError(
            f"task_units {units.tolist()} do not map the {len(names)} tasks to the "
            f"{given.num_tasks} units of the weighter"
        )
    return given


def _by_name(
    given: Mapping[str, float] | str | None, options: Any, names: Sequence[str], units: np.ndarray
) -> Weighter:
    weights = None if given is None or isinstance(given, str) else _of_units(given, names, units)
    wanted = given if isinstance(given, str) else None if weights is None else "VisATB"
    asked = options.weight_method
    if wanted is not None and asked not in (None, wanted):
        raise ValueError(f"weighter means {wanted}, but weight_method is {asked}")
    method = wanted or asked or "EW"
    if method not in WEIGHTERS:
        raise ValueError(f"weighter must be one of {', '.join(WEIGHTERS)}, got {method!r}")
    if WEIGHTERS[method].takes_weights and weights is None:
        raise ValueError(f"{method} needs weights: pass them by name, weighter={{{names[0]!r}: 1.0, …}}")
    return WEIGHTERS[method].from_arguments(options, int(units.max()) + 1, weights)


def _of_units(given: Mapping[str, float], names: Sequence[str], units: np.ndarray) -> list[float]:
    """λ by task → λ float[N]."""
    if set(given) != set(names):
        missing, unknown = sorted(set(names) - set(given)), sorted(set(given) - set(names))
        raise ValueError(f"weights do not fit the tasks: missing {missing}, unknown {unknown}")
    weights: dict[int, float] = {}
    for name, unit in zip(names, units.tolist(), strict=True):
        if weights.setdefault(unit, given[name]) != given[name]:
            raise ValueError(f"task {name!r} is to weigh {given[name]}, another task of its group {weights[unit]}")
    if sorted(weights) != list(range(len(weights))):
        raise ValueError(f"task_units {units.tolist()} leave a unit without a task")
    return [weights[unit] for unit in range(len(weights))]


class TaskCollator:
    """The Trainer's collator, which is given samples without their task, and `vitw_task_ids` int64[B] to its batch.

    Args:
        collator: samples → batch, one row of `input_ids` for each sample.
        column: where a sample's task stands.
        names: the tasks, in the order of their numbers.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str, names: Sequence[str]) -> None:
        self.collator = collator
        self.column = column
        self.numbers = {name: number for number, name in enumerate(names)}

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        tasks = [self._number(sample) for sample in samples]
        rest = [{name: value for name, value in sample.items() if name != self.column} for sample in samples]
        batch = self.collator(rest)
        if "labels" not in batch or len(batch["labels"]) != len(samples):
            raise ValueError(
                f"the collator must give labels with one row for each of its {len(samples)} samples, "
                f"or it is not known whose a token is (it gave {sorted(batch)})"
            )
        batch["vitw_task_ids"] = torch.tensor(tasks)
        return batch

    def _number(self, sample: dict[str, Any]) -> int:
        if self.column not in sample:
            raise ValueError(f"a sample has no {self.column!r} (it has {', '.join(sample)})")
        name = sample[self.column]
        if name not in self.numbers:
            raise ValueError(f"a sample's {self.column} is {name!r}, not one of {', '.join(self.numbers)}")
        return self.numbers[name]
