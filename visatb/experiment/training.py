"""How an experiment's models are trained: defaults, each stage's arguments, batch and steps, the paper's advice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from visatb.experiment.schema import Argument, Experiment
from visatb.experiment.yaml_lines import ExperimentError

# The paper's advice (section 3.5, Appendices B and G).
MINI_SAMPLES, LARGE_SAMPLES, ENOUGH_STEPS = 1_000, 10_000, 100


# The settings that LLaVA-v1.5 and the paper train with, as far as they decide results.
TRAINING_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "model_max_length": 2048,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 1,
    "report_to": "none",
}


def training_arguments(experiment: Experiment, stage: str) -> dict[str, Argument]:
    """The train command's arguments of a stage ("proxies", "finals", "stl"): the common ones under its own."""
    lora: dict[str, Argument] = {"lora_enable": True} if stage == "proxies" and experiment.proxies == "lora" else {}
    stage_arguments = dict(experiment.overrides.items()).get(stage, {})  # type: ignore[call-overload]
    return {**experiment.training, **lora, **stage_arguments}


LARGEST_MICRO_BATCH = 16


def batch_split(experiment: Experiment, arguments: Mapping[str, Argument], processes: int) -> tuple[int, int]:
    """(micro-batch per process, accumulation steps) that make the global batch.

    Raises:
        ExperimentError: the processes, or the micro-batch asked for, do not divide it.
    """
    batch = experiment.global_batch_size
    if batch % processes:
        raise ExperimentError(f"global_batch_size {batch} cannot be shared evenly by {processes} processes")
    share = batch // processes
    asked = arguments.get("per_device_train_batch_size")
    if isinstance(asked, int):
        micro = min(asked, share)
        if share % micro:
            raise ExperimentError(
                f"global_batch_size {batch} on {processes} processes is {share} each, no multiple of "
                f"per_device_train_batch_size {asked}"
            )
        return micro, share // micro
    micro = math.gcd(share, LARGEST_MICRO_BATCH)
    return micro, share // micro


def optimizer_steps(experiment: Experiment, stage: str, samples: int) -> int:
    """The number of optimizer steps of a run over `samples` samples."""
    arguments = training_arguments(experiment, stage)
    limit = int(str(arguments.get("max_steps", -1)))
    if limit > 0:
        return limit
    epochs = float(str(arguments.get("num_train_epochs", 1)))
    return max(1, math.ceil(math.ceil(samples / experiment.global_batch_size) * epochs))
