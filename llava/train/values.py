"""What the values of training arguments must be, so that a run that cannot come out right never begins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from transformers.integrations import integration_utils

LARGEST_SEED = 2**32 - 1
"""What NumPy's generators take."""

_POSITIVE: tuple[str, ...] = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "model_max_length",
    "lora_r",
    "lora_alpha",
    "logging_steps",
    "save_steps",
)
_NOT_NEGATIVE = (
    "mm_projector_lr",  # 0 keeps a part as it is
    "mm_vision_tower_lr",
    "weight_decay",
    "max_grad_norm",
    "warmup_steps",
    "adam_epsilon",
    "dataloader_num_workers",
)
_SHARES = ("adam_beta1", "adam_beta2", "lora_dropout")
_PACKAGES = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
"""Names in transformers' `is_…_available` where they are not the reporter's own."""


def faults(*parts: Any) -> Iterator[str]:
    """What is wrong with the values of argument dataclasses, a text for each flag."""
    values = {field.name: getattr(part, field.name) for part in parts for field in dataclasses.fields(part)}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"--{name} must be a finite number: {value}"
    yield from _outside(values, _POSITIVE, lambda value: value > 0, "must be above 0")
    yield from _outside(values, _NOT_NEGATIVE, lambda value: value >= 0, "must not be below 0")
    yield from _outside(values, _SHARES, lambda value: 0 <= value < 1, "must lie in [0, 1)")
    for name in ("seed", "data_seed"):
        seed = values.get(name)
        if seed is not None and not 0 <= seed <= LARGEST_SEED:
            yield f"--{name} must be a whole number from 0 to {LARGEST_SEED}: {seed}"
    epochs, steps = values["num_train_epochs"], values["max_steps"]
    if math.isfinite(epochs) and epochs <= 0 and steps <= 0:
        yield f"--num_train_epochs must be above 0: {epochs:g} trains nothing"
    if steps == 0:
        yield "--max_steps must be above 0 (or -1: as many as the epochs take): 0 trains nothing"
    yield from _missing_reporters(values["report_to"])


def _outside(values: dict[str, Any], names: tuple[str, ...], fits: Any, words: str) -> Iterator[str]:
    for name in names:
        value = values.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and not fits(value):
            yield f"--{name} {words}: {value}"


def _missing_reporters(names: list[str] | str | None) -> Iterator[str]:
    """Reporters that transformers does not know, or whose package is not installed."""
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in [names] if isinstance(names, str) else names or ():
        if name in ("none", "all"):
            continue
        if name not in known:
            yield f"--report_to: unknown {name}; known: none, {', '.join(known)}"
            continue
        available = getattr(integration_utils, f"is_{_PACKAGES.get(name, name)}_available", None)
        if available is not None and not available():
            yield f"--report_to: {name} is not installed; install its package, or report to none"
