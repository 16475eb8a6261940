"""The Trainer with LLaVA's separate learning rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HfTrainingArguments

from llava.model.family import Family
from llava.progress import Progress
from llava.train.arguments import TrainingArguments
from transformers_patch.trainer import VitwTrainer


class LlavaTrainer(VitwTrainer):
    """VitwTrainer; projector and vision tower learn at `mm_projector_lr` and `mm_vision_tower_lr` where these are set.

    Args:
        family: says which modules are projector and tower.
        before_first_step: is called on every rank with the model, as the first step will use it, and with what puts
            a batch on its device.
    """

    args: TrainingArguments

    def __init__(
        self,
        *args: Any,
        family: Family,
        before_first_step: Callable[[nn.Module, Callable[[dict[str, Any]], dict[str, Any]]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._before_first_step = before_first_step
        self.add_callback(ProgressCallback())
        # Projector first: Qwen's lies inside its tower.
        self._rates = [
            (prefixes, rate)
            for prefixes, rate in (
                (family.projector_modules, self.args.mm_projector_lr),
                (family.vision_modules, self.args.mm_vision_tower_lr),
            )
            if rate is not None
        ]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch; overridden because DeepSpeed's model can be asked no sooner."""
        if self._before_first_step is not None:
            with self.compute_loss_context_manager():
                self._before_first_step(model, self._prepare_inputs)
            self._before_first_step = None
        return super().training_step(model, inputs, num_items_in_batch)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The stock optimizer, its groups cut by learning rate; the stock method knows one rate for all."""
        optimizer = super().create_optimizer(model)
        if self._rates and all("rate_of" not in group for group in optimizer.param_groups):
            net = cast(nn.Module, self.model if model is None else model)
            names = {id(parameter): name for name, parameter in net.named_parameters()}
            optimizer.param_groups[:] = [
                part for group in optimizer.param_groups for part in self._split(group, names) if part["params"]
            ]
        return optimizer

    def _split(self, group: dict[str, Any], names: dict[int, str]) -> list[dict[str, Any]]:
        """One group per learning rate, parameters in their order."""
        parts: dict[float, list[nn.Parameter]] = {group["lr"]: []}
        for parameter in group["params"]:
            parts.setdefault(self._rate(names[id(parameter)], group["lr"]), []).append(parameter)
        return [{**group, "params": parameters, "lr": rate, "rate_of": rate} for rate, parameters in parts.items()]

    def _rate(self, name: str, default: float) -> float:
        # PEFT puts its own levels around the module path.
        for prefixes, rate in self._rates:
            if any(f".{prefix}." in f".{name}." for prefix in prefixes):
                return rate
        return default


class ProgressCallback(TrainerCallback):
    """Notes how many optimizer steps a training has taken, for whoever watches it."""

    def on_train_begin(self, args: HfTrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress, self._step = Progress(state.max_steps, state.global_step), state.global_step

    def on_step_end(self, args: HfTrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.advance(state.global_step - self._step)
        self._step = state.global_step
