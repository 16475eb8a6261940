"""Task weighters: one class per method, one formula for all.

Every method minimises, over the valid target tokens t of one optimizer step,

    L = Σ_t λ_k(t) · CE_t / Σ_t λ_k(t)

where k(t) is the task of token t; the methods differ only in λ. With λ given and fixed this is the paper's Equation 2
(VITW). A method is one class here and one line in `WEIGHTERS`, the only list of methods.

Legend: N tasks (or task groups); n_k valid target tokens of task k in the global batch of the step.

A weighter knows nothing of models, trainers or files. It is the same on every rank because everything it reads is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Weighter(ABC):
    """λ of one optimizer step.

    Contract: `task_weights` is pure and is called before the first forward of a step; `observe` is called once after
    the last backward of the same step. `step` counts optimizer steps from 0. `state_dict` holds JSON values only.
    """

    name: str
    observes = False
    """Whether λ depends on past losses, so that they must be reduced over the ranks after every step."""

    takes_weights = False
    """Whether λ is given by the user."""

    def __init__(self, num_tasks: int) -> None:
        if num_tasks < 1:
            raise ValueError(f"a weighter needs at least one task, got {num_tasks}")
        self.num_tasks = num_tasks

    @classmethod
    def from_arguments(cls, arguments: Any, num_tasks: int, weights: Sequence[float] | None) -> Weighter:
        """Return the weighter of a training run.

        Args:
            arguments: the run's `VitwTrainingArguments`, of which a method reads its own.
            weights: λ float[N] for a method that `takes_weights`, else None.
        """
        return cls(num_tasks)

    @abstractmethod
    def task_weights(self, step: int, token_counts: Int64) -> Float64:
        """Return λ float64[N] for optimizer step `step` whose valid target tokens per task are int64[N]."""

    def observe(self, step: int, loss_sums: Float64, token_counts: Int64) -> None:  # noqa: B027 - most need nothing
        """Take in the summed token losses float64[N] and token counts int64[N] of the whole step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{self.name} keeps no state, but the checkpoint holds {sorted(state)}")


class EqualWeighting(Weighter):
    """EW: every token counts the same (Equation 1).

        λ_k = 1

    >>> EqualWeighting(2).task_weights(0, np.array([100, 4]))
    array([1., 1.])
    """

    name = "EW"

    def task_weights(self, step: int, token_counts: Int64) -> Float64:
        return np.ones(self.num_tasks)


class GivenWeights(Weighter):
    """VisATB: λ comes from validation scores before training and stays (Equations 2 and 8).

        λ_k = the weight given for task k

    >>> GivenWeights(2, [0.5, 1.5]).task_weights(0, np.array([100, 4]))
    array([0.5, 1.5])
    """

    name = "VisATB"
    takes_weights = True

    def __init__(self, num_tasks: int, weights: Sequence[float]) -> None:
        super().__init__(num_tasks)
        self.weights = np.asarray(weights, dtype=np.float64)
        if self.weights.shape != (num_tasks,):
            raise ValueError(f"{num_tasks} tasks need {num_tasks} weights, got {self.weights.size}")
        if not np.isfinite(self.weights).all() or (self.weights < 0).any() or not self.weights.any():
            raise ValueError(f"weights must be finite, none negative and not all zero, got {self.weights.tolist()}")

    @classmethod
    def from_arguments(cls, arguments: Any, num_tasks: int, weights: Sequence[float] | None) -> Weighter:
        return cls(num_tasks, () if weights is None else weights)

    def task_weights(self, step: int, token_counts: Int64) -> Float64:
        return self.weights.copy()


class TaskLevelAggregation(Weighter):
    """TLA: L is the mean, over the tasks present in a step, of their mean token losses.

        λ_k = 1 / n_k      (0 for a task that is absent)

    >>> TaskLevelAggregation(2).task_weights(0, np.array([100, 4]))
    array([0.01, 0.25])
    """

    name = "TLA"

    def task_weights(self, step: int, token_counts: Int64) -> Float64:
        present = token_counts > 0
        return np.where(present, 1.0 / np.maximum(token_counts, 1), 0.0)


class RandomWeighting(Weighter):
    """RLW (Lin et al. 2021): random weights, drawn anew for each optimizer step from (seed, step).

        z_k ~ Normal(0, 1)
        λ   = N · softmax(z)

    >>> RandomWeighting(2, seed=0).task_weights(0, np.array([100, 4])).round(3)
    array([1.128, 0.872])
    """

    name = "RLW"

    def __init__(self, num_tasks: int, seed: int = 0) -> None:
        super().__init__(num_tasks)
        self.seed = seed

    @classmethod
    def from_arguments(cls, arguments: Any, num_tasks: int, weights: Sequence[float] | None) -> Weighter:
        return cls(num_tasks, seed=arguments.seed)

    def task_weights(self, step: int, token_counts: Int64) -> Float64:
        return self.num_tasks * softmax(np.random.default_rng([self.seed, step]).standard_normal(self.num_tasks))


class DynamicWeightAverage(Weighter):
    """DWA (Liu et al. 2019): a task whose loss falls more slowly than the others' weighs more.

        r_k = mean of task k's last w observations / mean of the w before them
        λ   = N · softmax(r / τ)

    An observation is the task's mean token loss in a step in which it is present; r_k = 1 until there are 2w of them.

    >>> weighter = DynamicWeightAverage(2, window=1, temperature=2.0)
    >>> for step, losses in enumerate(([4.0, 4.0], [2.0, 4.0])):  # of one token of each task
    ...     weighter.observe(step, np.array(losses), np.array([1, 1]))
    >>> weighter.task_weights(2, np.array([1, 1])).round(3)  # r = (0.5, 1)
    array([0.876, 1.124])
    """

    name = "DWA"
    observes = True

    def __init__(self, num_tasks: int, window: int = 25, temperature: float = 2.0) -> None:
        super().__init__(num_tasks)
        self.window = positive_int("DWA window", window)
        if not temperature > 0:
            raise ValueError(f"DWA temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self._losses: list[deque[float]] = [deque(maxlen=2 * window) for _ in range(num_tasks)]

    @classmethod
    def from_arguments(cls, arguments: Any, num_tasks: int, weights: Sequence[float] | None) -> Weighter:
        return cls(num_tasks, window=arguments.dwa_window, temperature=arguments.dwa_temperature)

    def task_weights(self, step: int, token_counts: Int64) -> Float64:
        rates = np.array([self._descent_rate(list(losses)) for losses in self._losses])
        return self.num_tasks * softmax(rates / self.temperature)

    def _descent_rate(self, losses: list[float]) -> float:
        if len(losses) < 2 * self.window:
            return 1.0
        return ratio(math.fsum(losses[self.window :]), math.fsum(losses[: self.window]))

    def observe(self, step: int, loss_sums: Float64, token_counts: Int64) -> None:
        for k in np.flatnonzero(token_counts):
            self._losses[k].append(float(loss_sums[k] / token_counts[k]))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": [list(losses) for losses in self._losses]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = [deque(losses, maxlen=2 * self.window) for losses in state["losses"]]


class ImprovableGapBalancing(Weighter):
    """IGBv1 (Dai et al. 2023): a task that is still far from having improved on its early loss weighs more.

        base_k = mean of task k's losses in steps w to 2w
        u_k    = its latest loss / base_k
        λ      = N · softmax(u)

    u_k = 1 before step 2w, and for a task that was absent from all of those steps.

    >>> weighter = ImprovableGapBalancing(2, window=1)
    >>> for step, losses in enumerate(([5.0, 5.0], [4.0, 4.0], [2.0, 4.0])):  # of one token of each task
    ...     weighter.observe(step, np.array(losses), np.array([1, 1]))
    >>> weighter.task_weights(3, np.array([1, 1])).round(3)  # u = (0.5, 1)
    array([0.755, 1.245])
    """

    name = "IGB"
    observes = True

    def __init__(self, num_tasks: int, window: int = 100) -> None:
        super().__init__(num_tasks)
        self.window = positive_int("IGB window", window)
        self._base_sum = [0.0] * num_tasks
        self._base_count = [0] * num_tasks
        self._latest = [0.0] * num_tasks

    @classmethod
    def from_arguments(cls, arguments: Any, num_tasks: int, weights: Sequence[float] | None) -> Weighter:
        return cls(num_tasks, window=arguments.igb_window)

    def task_weights(self, step: int, token_counts: Int64) -> Float64:
        if step < 2 * self.window:
            return np.ones(self.num_tasks)
        gaps = [
            ratio(latest * count, base) if count else 1.0
            for latest, base, count in zip(self._latest, self._base_sum, self._base_count, strict=True)
        ]
        return self.num_tasks * softmax(np.array(gaps))

    def observe(self, step: int, loss_sums: Float64, token_counts: Int64) -> None:
        for k in np.flatnonzero(token_counts):
            loss = float(loss_sums[k] / token_counts[k])
            self._latest[k] = loss
            if self.window <= step < 2 * self.window:
                self._base_sum[k] += loss
                self._base_count[k] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"base_sum": self._base_sum, "base_count": self._base_count, "latest": self._latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._base_sum = list(state["base_sum"])
        self._base_count = list(state["base_count"])
        self._latest = list(state["latest"])


WEIGHTERS: dict[str, type[Weighter]] = {
    cls.name: cls
    for cls in (
        EqualWeighting,
        TaskLevelAggregation,
        RandomWeighting,
        DynamicWeightAverage,
        ImprovableGapBalancing,
        GivenWeights,
    )
}


def softmax(x: Float64) -> Float64:
    """Softmax of float64[N] that cannot overflow."""
    exp = np.exp(x - x.max())
    return exp / exp.sum()


def ratio(numerator: float, denominator: float) -> float:
    """numerator ÷ denominator of two losses; 1 (no preference) where the denominator is 0 or the ratio not finite."""
    value = numerator / denominator if denominator else 1.0
    return value if math.isfinite(value) else 1.0


def positive_int(what: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{what} must be at least 1, got {value}")
    return value
