"""The Trainer that reads a task weighter.

One optimizer step: its micro-batches are fetched, their valid target tokens counted per task and summed over the ranks
(n_k), λ asked of the weighter, and the divisor Σ_k λ_k n_k is known before the first forward. Each micro-batch then
contributes Σ λ CE over its tokens divided by that one number, so that the step's loss is Equation 2 however the batch
is cut into micro-batches and ranks.

Legend: T tasks, N weighting units (tasks, or task groups).
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from transformers_patch.arguments import VitwTrainingArguments
from transformers_patch.checkpoint import (
    ADVICE,
    COMPLETE,
    WEIGHTER_FILE,
    DivergedError,
    describe_nonfinite,
    load_full_model,
    mark_complete,
)
from transformers_patch.forward import TokenLosses, patch_forward
from transformers_patch.loss import target_tasks, task_loss_sums, token_counts
from transformers_patch.preempt import Preemption, shield_worker
from transformers_patch.sampler import EpochBatchSampler, EpochOrder, PaddedDataset, sequential, shuffled
from transformers_patch.weighter import Weighter

logger = logging.getLogger(__name__)


class _NoGradientsOfInputs(TrainerCallback):
    """Takes back that inputs require gradients, which transformers asks for together with checkpointing.

    Only checkpoints of the reentrant kind need it. Its hook sits on the embeddings of a frozen vision tower, too, which
    is then computed once more and differentiated at every step, for gradients that nobody reads.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        options = args.activation_checkpointing_kwargs or {}
        if not (isinstance(options, dict) and options.get("use_reentrant")):
            model.disable_input_require_grads()


class VitwTrainer(Trainer):
    """transformers' Trainer with the task-weighted token loss.

    Batches hold `input_ids` and `labels` int64[B, S], `vitw_task_ids` int64[B] (int64[B, S] when packed) and whatever
    else the model takes.

    Args:
        task_names: names of the T tasks in the order of `vitw_task_ids`.
        weighter: the weighting method over N units.
        task_units: int[T], the unit of each task; None means that each task is its own.
        train_order: epoch → permutation of the training samples; None shuffles them by (data_seed or seed, epoch).
        vocab_size: head rows from here up are padding (see `patch_forward`).
        load_model: folder of a full checkpoint → model, to resume from; None is the model class's `from_pretrained`.
    """

    args: VitwTrainingArguments

    def __init__(
        self,
        model: nn.Module,
        args: VitwTrainingArguments,
        *,
        task_names: Sequence[str],
        weighter: Weighter,
        task_units: Sequence[int] | None = None,
        train_order: EpochOrder | None = None,
        vocab_size: int | None = None,
        load_model: Callable[[str], PreTrainedModel] | None = None,
        **kwargs: Any,
    ) -> None:
        patch_forward(model, args.loss_impl, vocab_size)
        super().__init__(model=model, args=args, **kwargs)
        if args.n_gpu > 1:
            raise ValueError("several GPUs in one process (DataParallel) are not supported: launch with torchrun")
        self.task_names = list(task_names)
        self.task_units = np.arange(len(task_names)) if task_units is None else np.asarray(task_units)
        if self.task_units.shape != (len(task_names),) or self.task_units.max() >= weighter.num_tasks:
            raise ValueError(
                f"task_units {self.task_units.tolist()} do not map the {len(task_names)} tasks to the "
                f"{weighter.num_tasks} units of the weighter"
            )
        self.weighter = weighter
        self.train_order = train_order
        self.load_model = load_model
        # The loss is normalised over the whole step here; the stock division by accumulation steps must not follow.
        # It does for `micro_batch`, which is just that: the mean over micro-batches.
        self.loss_is_scaled_for_ga = args.loss_norm == "step"
        self.add_callback(_NoGradientsOfInputs())
        self.preemption = Preemption()
        self.add_callback(self.preemption)
        self._step_weights = np.ones(weighter.num_tasks)
        self._micro_batches_left = 0
        self._step_losses = self._zeros(len(task_names))
        self._step_faults = self._zeros(len(task_names))  # tokens whose loss is not finite
        self._step_counts = np.zeros(len(task_names), dtype=np.int64)
        self._log_losses = self._zeros(len(task_names))
        self._log_counts = np.zeros(len(task_names), dtype=np.int64)
        self._eval_losses = self._zeros(len(task_names))
        self._eval_counts = self._zeros(len(task_names))

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        """The training batches of this rank, each epoch in its own order and filled up with blanks.

        Overridden because the stock loader evens out the last step by repeating samples, which would count twice.
        """
        dataset: Any = self.train_dataset
        if dataset is None:
            raise ValueError("training needs a train_dataset")
        self.args.check_batch()
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = self.train_order or shuffled(len(dataset), seed)
        self._train_batches = self._batches(dataset, order, self.args.train_batch_size, self.args.samples_per_step)
        return self._loader(dataset, self._train_batches)

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Tell the sampler its epoch, then run it.

        Overridden because the stock code does not reach the sampler of a resumed epoch on several ranks, and no public
        hook comes before an epoch's first batch is drawn.
        """
        self._train_batches.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """The batches of an evaluation in the order of the data; overridden for the same blanks as in training."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = cast(dict[str, Any], self.eval_dataset)[dataset]
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset")
        return self._loader(dataset, self._batches(dataset, sequential(len(dataset)), self.args.eval_batch_size))

    def _batches(
        self, dataset: Any, order: EpochOrder, batch_size: int, step_size: int | None = None
    ) -> EpochBatchSampler:
        return EpochBatchSampler(order, len(dataset), batch_size, self.args.world_size, step_size)

    def _loader(self, dataset: Any, batches: EpochBatchSampler) -> DataLoader:
        args = self.args
        loader = DataLoader(
            PaddedDataset(dataset),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            worker_init_fn=shield_worker,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    # ---- one optimizer step

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Fetch a step's micro-batches; return them with the divisor Σ_k λ_k n_k of the whole step, float64[].

        Overridden because it is the one place where a step's micro-batches are seen before its first forward; the stock
        method counts their tokens, whatever their tasks.
        """
        if 0 < self.state.max_steps <= self.state.global_step:
            # Resumed from the last step's checkpoint within an epoch: the stock loop would take one more step.
            self.control.should_training_stop = True
            return [], None
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if not batches:
            return [], None
        num_tasks = len(self.task_names)
        of_batches = [token_counts(batch["labels"], batch["vitw_task_ids"], num_tasks) for batch in batches]
        counts = torch.stack(of_batches).sum(0)
        flag = counts.new_tensor([self.preemption.requested])
        totals = self.accelerator.reduce(torch.cat([counts, flag]).to(device), reduction="sum").cpu().numpy()
        self.preemption.agreed = bool(totals[-1])
        self._step_counts = totals[:-1]
        self._step_weights, divisor = self._weigh(self._step_counts)
        self._micro_batches_left = len(batches)
        return batches, torch.tensor(divisor, dtype=torch.float64)

    def _weigh(self, task_counts: np.ndarray) -> tuple[np.ndarray, float]:
        """int64[T] token counts → λ float64[N] of the current step, and Σ_k λ_k n_k."""
        counts = self._by_unit(task_counts)
        weights = self.weighter.task_weights(self.state.global_step, counts)
        return weights, float(weights @ counts)

    def _by_unit(self, per_task: np.ndarray) -> np.ndarray:
        return np.bincount(self.task_units, weights=per_task, minlength=self.weighter.num_tasks).astype(per_task.dtype)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's part of the step's loss, scaled by the number of ranks (backward averages them).

        Overridden because the stock loss knows no tasks.

        Args:
            num_items_in_batch: the divisor from `get_batch_samples`.
        """
        token_tasks = target_tasks(inputs["labels"], inputs["vitw_task_ids"])
        outputs: TokenLosses = model(**inputs)
        losses = outputs.token_losses
        assert losses is not None
        self._step_losses += self._per_task(losses.detach(), token_tasks)
        self._step_faults += self._per_task(~losses.detach().isfinite(), token_tasks)
        if self.args.loss_norm == "micro_batch":
            counts = torch.bincount(token_tasks, minlength=len(self.task_names)).cpu().numpy()
            weights, divisor = self._weigh(counts)
            scale = 1.0
        else:
            weights, divisor = self._step_weights, float(num_items_in_batch or 0)
            scale = float(self.accelerator.num_processes)
        # No valid token, or only tasks of weight 0: a zero with a graph, so that every rank runs its backward.
        per_task = torch.as_tensor(weights[self.task_units] * (scale / divisor if divisor else 0.0))
        loss = (per_task.to(losses)[token_tasks] * losses).sum()
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of a micro-batch; overridden to take stock after a step's last backward."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches_left -= 1
        if self._micro_batches_left == 0:
            self._finish_step()
        return loss

    def _finish_step(self) -> None:
        self._log_losses += self._step_losses
        self._log_counts += self._step_counts
        step = torch.stack([self._step_losses, self._step_faults])
        sums, faults = self.accelerator.reduce(step, reduction="sum").cpu().double().numpy()
        if bad := [name for name, fault in zip(self.task_names, faults, strict=True) if fault]:
            raise self._diverged(f"the loss of {', '.join(bad)} is not finite")
        if self.weighter.observes:
            self.weighter.observe(self.state.global_step, self._by_unit(sums), self._by_unit(self._step_counts))
        self._step_losses.zero_()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the step's gradient, before the optimizer's step (DeepSpeed: after); it is the same on all ranks.

        Raises:
            DivergedError: it is not finite. Under fp16 that is expected while the loss scale is being found: the step
                is left out by whoever scales, and only a scale below 1 is too small to be the reason.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        # DeepSpeed gives None for a norm that it was told not to compute, and may give -1 for one that is not finite.
        if norm is not None and not 0 <= float(norm) < math.inf and not self._scaling():
            tasks = [name for name, count in zip(self.task_names, self._step_counts, strict=True) if count]
            raise self._diverged(f"the norm of the gradient is not finite (tasks of the step: {', '.join(tasks)})")
        return norm

    def _scaling(self) -> bool:
        if not self.args.fp16:
            return False
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler is None or scaler.get_scale() >= 1

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(f"step {self.state.global_step + 1}: {what}. {ADVICE}")

    def _per_task(self, losses: Tensor, token_tasks: Tensor) -> Tensor:
        """[n] detached token losses and the tokens' tasks int64[n] → Σ CE per task [T]."""
        return task_loss_sums(losses.to(self._step_losses.dtype), token_tasks, len(self.task_names))

    def _zeros(self, size: int) -> Tensor:
        device = self.args.device
        return torch.zeros(size, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    # ---- logging and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each task's mean token loss, share of tokens and current λ to the Trainer's own training log."""
        if "loss" in logs and "learning_rate" in logs:
            logs.update(self._task_logs())
        super().log(logs, start_time)

    def _task_logs(self) -> dict[str, float]:
        losses = self.accelerator.reduce(self._log_losses, reduction="sum").cpu().numpy()
        total = self._log_counts.sum()
        logs = {}
        for name, unit, loss, count in zip(self.task_names, self.task_units, losses, self._log_counts, strict=True):
            if count:
                logs[f"task_loss/{name}"] = float(loss / count)
            logs[f"task_tokens/{name}"] = float(count / total) if total else 0.0
            logs[f"task_weight/{name}"] = float(self._step_weights[unit])
        self._log_losses.zero_()
        self._log_counts = np.zeros_like(self._log_counts)
        return logs

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Add a batch's losses to their tasks; overridden because the stock method averages over batches."""
        inputs = self._prepare_inputs(inputs)
        token_tasks = target_tasks(inputs["labels"], inputs["vitw_task_ids"])
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = model(**inputs).token_losses
        self._eval_losses += self._per_task(losses, token_tasks)
        self._eval_counts += torch.bincount(token_tasks, minlength=len(self.task_names))
        return losses.new_zeros(()), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; `eval_loss` is the mean over all valid tokens, `eval_loss_TASK` over those of one task."""
        self._eval_losses.zero_()
        self._eval_counts.zero_()
        output = super().evaluation_loop(*args, **{**kwargs, "prediction_loss_only": True})
        losses = self.accelerator.reduce(self._eval_losses, reduction="sum").tolist()
        counts = self.accelerator.reduce(self._eval_counts, reduction="sum").tolist()
        prefix = kwargs.get("metric_key_prefix", "eval")
        assert output.metrics is not None
        output.metrics[f"{prefix}_loss"] = math.fsum(losses) / max(math.fsum(counts), 1.0)
        for name, loss, count in zip(self.task_names, losses, counts, strict=True):
            if count:
                output.metrics[f"{prefix}_loss_{name}"] = loss / count
        return output

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint that is marked complete when all of it is on the disk, and only then let older ones go.

        Raises:
            DivergedError: on all ranks, where the weights to be saved are not finite.
        """
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            _make_room(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        fault = describe_nonfinite(folder, self.state.global_step) if self.args.should_save else None
        self._raise_together(fault)
        if self.args.should_save:
            (folder / WEIGHTER_FILE).write_text(json.dumps(self.weighter.state_dict()))
            mark_complete(folder)
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    def _raise_together(self, fault: str | None) -> None:
        """Raise DivergedError on every rank where any has a `fault`."""
        flag = torch.tensor([float(fault is not None)], device=self.args.device)
        if self.accelerator.reduce(flag, reduction="sum").item():
            raise DivergedError(fault or "the weights are not finite: see rank 0")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint whole, or fail.

        The stock method matches names literally, which for LLaVA or Qwen2-VL, whose saved names differ from the
        model's own, loads next to nothing and only warns.
        """
        target: Any = self.model if model is None else model
        if hasattr(target, "peft_config") or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_full_model(target, resume_from_checkpoint, self.load_model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's state, and the weighter's with it: overridden because both belong to the same step."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.weighter.load_state_dict(json.loads((Path(checkpoint) / WEIGHTER_FILE).read_text()))


def _make_room(folder: Path) -> None:
    """Remove what is left of a checkpoint that was cut off, whose files must not be taken for those of the new one."""
    if (folder / COMPLETE).is_file():
        (folder / COMPLETE).unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
