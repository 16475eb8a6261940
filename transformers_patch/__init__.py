"""Task-weighted training on top of transformers: weighters, the loss, the forward that serves it, and the Trainer.

    from transformers_patch import VitwMixin  # for a Trainer of your own: docs/trainers.md
    from transformers_patch import VitwTrainer, VitwTrainingArguments

Each name is imported when it is first asked for, so that weighters can be had without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers_patch.arguments import VitwTrainingArguments, WeightingArguments
    from transformers_patch.checkpoint import DivergedError
    from transformers_patch.forward import TokenLosses, patch_forward
    from transformers_patch.mixin import VitwMixin
    from transformers_patch.trainer import VitwTrainer
    from transformers_patch.weighter import (
        WEIGHTERS,
        DynamicWeightAverage,
        EqualWeighting,
        GivenWeights,
        ImprovableGapBalancing,
        RandomWeighting,
        TaskLevelAggregation,
        Weighter,
    )

__all__ = [
    "WEIGHTERS",
    "DivergedError",
    "DynamicWeightAverage",
    "EqualWeighting",
    "GivenWeights",
    "ImprovableGapBalancing",
    "RandomWeighting",
    "TaskLevelAggregation",
    "TokenLosses",
    "VitwMixin",
    "VitwTrainer",
    "VitwTrainingArguments",
    "Weighter",
    "WeightingArguments",
    "patch_forward",
]

_MODULES = {
    "DivergedError": "checkpoint",
    "TokenLosses": "forward",
    "VitwMixin": "mixin",
    "VitwTrainer": "trainer",
    "VitwTrainingArguments": "arguments",
    "WeightingArguments": "arguments",
    "patch_forward": "forward",
}
"""Where a name is defined; all others are weighters."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'weighter')}"), name)
