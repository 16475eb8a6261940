"""Training arguments that the weighted loss adds to the stock ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

from transformers import TrainingArguments

from transformers_patch.forward import LOSS_IMPLS
from transformers_patch.loss import LOSS_NORMS
from transformers_patch.weighter import WEIGHTERS, Weighter


@dataclass
class WeightingArguments:
    """The choice of task weighting and of how the loss is computed, to be added to a Trainer's own arguments.

    `@dataclass class Config(WeightingArguments, SFTConfig)` has them all, in Python as on a command line.

    Raises:
        ValueError: a value outside its choices.
    """

    weight_method: str | None = field(
        default=None,
        metadata={
            "help": "Task weighting method (none: VisATB where weights are given, else EW).",
            "choices": list(WEIGHTERS),
        },
    )
    dwa_window: int = field(default=25, metadata={"help": "DWA: observations of a task per window."})
    dwa_temperature: float = field(default=2.0, metadata={"help": "DWA: softmax temperature."})
    igb_window: int = field(default=100, metadata={"help": "IGB: the base loss is taken over optimizer steps w to 2w."})
    loss_impl: str = field(
        default="auto",
        metadata={
            "help": "How token losses are computed: logits of valid target tokens only (select), the same in chunks "
            "that bound memory (chunked), the one of the two that fits (auto), or all logits (full, the reference).",
            "choices": list(LOSS_IMPLS),
        },
    )
    loss_norm: str = field(
        default="step",
        metadata={
            "help": "Divide by the Σλ of the whole optimizer step (step, Equation 2) or of each micro-batch "
            "(micro_batch, the published divisor, for comparison).",
            "choices": list(LOSS_NORMS),
        },
    )

    def __post_init__(self) -> None:
        if hasattr(super(), "__post_init__"):
            super().__post_init__()  # type: ignore[misc]
        for name, choices in (("weight_method", WEIGHTERS), ("loss_impl", LOSS_IMPLS), ("loss_norm", LOSS_NORMS)):
            if name == "weight_method" and self.weight_method is None:
                continue
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    @staticmethod
    def of(args: TrainingArguments | None) -> Any:
        """`args` where they hold these settings; else an object with their defaults and the seed of `args`."""
        if isinstance(args, WeightingArguments):
            return args
        seed = TrainingArguments.seed if args is None else args.seed
        return SimpleNamespace(**asdict(WeightingArguments()), seed=seed)

    def make_weighter(self, num_tasks: int, weights: Sequence[float] | None = None) -> Weighter:
        """Return the weighter of `weight_method` for `num_tasks` weighting units (tasks, or groups of tasks).

        Args:
            weights: λ float[N] for VisATB; must be None for every other method.

        Raises:
            ValueError: weights without a method that takes them, or the other way round.
        """
        method = self.weight_method or ("EW" if weights is None else "VisATB")
        weighter = WEIGHTERS[method]
        if weights is None and weighter.takes_weights:
            raise ValueError(f"weight_method {method} needs weights")
        if weights is not None and not weighter.takes_weights:
            raise ValueError(f"weights were given, but weight_method is {method}")
        return weighter.from_arguments(self, num_tasks, weights)


@dataclass
class VitwTrainingArguments(WeightingArguments, TrainingArguments):
    """Stock arguments plus those of weighting, and what our own Trainer adds.

    Raises:
        ValueError: a value outside its choices, or label smoothing.
    """

    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Samples of an optimizer step, where processes × accumulation × micro-batch give more than is "
            "wanted: blanks that count nothing fill each step up (default: all of them are samples)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is not part of the weighted loss: leave it at 0")
        # The Trainer's batches, their order and their padding are its own (exact last step, exact resume).
        self.remove_unused_columns = False

    @property
    def samples_per_step(self) -> int:
        """Samples of an optimizer step, over all processes and accumulation steps."""
        places = self.train_batch_size * self.world_size * self.gradient_accumulation_steps
        return places if self.global_batch_size is None else self.global_batch_size

    def check_batch(self) -> None:
        """ValueError where `global_batch_size` needs another number of accumulation steps on these processes."""
        at_once = self.train_batch_size * self.world_size
        needed = max(1, -(-self.samples_per_step // at_once))
        if self.samples_per_step < 1 or needed != self.gradient_accumulation_steps:
            raise ValueError(
                f"global_batch_size {self.samples_per_step} does not fit {self.world_size} processes × micro-batch "
                f"{self.train_batch_size}: that takes gradient_accumulation_steps {needed}, "
                f"not {self.gradient_accumulation_steps}"
            )
