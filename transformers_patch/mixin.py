"""The weighted loss as a mix-in for a Trainer that people have already: transformers' own, or TRL's SFTTrainer.

    class WeightedTrainer(VitwMixin, SFTTrainer): ...

One optimizer step: its micro-batches are fetched, their valid target tokens counted per task and summed over the ranks
(n_k), λ asked of the weighter, and the divisor Σ_k λ_k n_k is known before the first forward. Each micro-batch then
contributes Σ λ CE over its tokens divided by that one number, so that the step's loss is Equation 2 however the batch
is cut into micro-batches and ranks. A Trainer that knows n_k of a step beforehand says so in `known_counts`; nothing
is fetched in advance then, and nothing summed before the forward.

Legend: T tasks, N weighting units (tasks, or task groups).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from transformers_patch.arguments import WeightingArguments
from transformers_patch.checkpoint import ADVICE, WEIGHTER_FILE, DivergedError
from transformers_patch.forward import TokenLosses, patch_forward
from transformers_patch.loss import task_loss_sums, tasks_at, token_counts
from transformers_patch.tasks import TaskCollator, check_stock_options, make_weighter, names_in_column
from transformers_patch.weighter import Weighter

if TYPE_CHECKING:
    from transformers import Trainer

    _Base = Trainer
else:
    _Base = object

logger = logging.getLogger(__name__)


class VitwMixin(_Base):
    """Gives a Trainer the task-weighted token loss: `class WeightedTrainer(VitwMixin, SFTTrainer): ...`

    Samples say their task in a column. Batches then hold `vitw_task_ids` int64[B], beside the `input_ids` and `labels`
    int64[B, S] and whatever else the Trainer's collator makes. The log gains `task_loss/TASK`, `task_tokens/TASK` and
    `task_weight/TASK`, evaluation `eval_loss_TASK`, checkpoints the state of the weighter.

    Args:
        model, args, train_dataset: as the Trainer takes them. `args` may be of a class that is also a
            `WeightingArguments`, whose settings are then used instead of their defaults.
        weighter: λ by the names of tasks, a method of `WEIGHTERS` by its name, or a `Weighter` over N units; None is
            the method of `args`.
        task_column: the column with the name of a sample's task; None where batches hold `vitw_task_ids` already.
        task_names: names of the T tasks in the order of `vitw_task_ids`; None reads them from the column of
            `train_dataset`, in the order of the alphabet.
        task_units: int[T], the unit of each task; None means that each task is its own.
        vocab_size: head rows from here up are padding (see `patch_forward`).

    Attributes:
        step_counts: int64[T], the target tokens of each task in the present optimizer step, over all ranks.
        step_weights: float64[N], λ of each unit in it.

    Raises:
        ValueError: tasks, weights or options of the Trainer that cannot be; before data are prepared.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        train_dataset: Any = None,
        weighter: Weighter | Mapping[str, float] | str | None = None,
        task_column: str | None = "task",
        task_names: Sequence[str] | None = None,
        task_units: Sequence[int] | None = None,
        vocab_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_stock_options(args, kwargs)
        if task_names is None:
            task_names = names_in_column(train_dataset, task_column)
        self.task_names = list(task_names)
        self.task_units = np.arange(len(task_names)) if task_units is None else np.asarray(task_units)
        options = WeightingArguments.of(args)
        self.weighter = make_weighter(weighter, options, self.task_names, self.task_units)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError("several GPUs in one process (DataParallel) are not supported: launch with torchrun")
        if self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            raise ValueError("tensor, context and sequence parallelism are not supported by the weighted loss")
        # Not before: the Trainer may make the model itself, or wrap it in LoRA.
        patch_forward(cast(nn.Module, self.model), options.loss_impl, vocab_size)
        self._task_column = task_column
        if task_column is not None:
            self.data_collator = TaskCollator(self.data_collator, task_column, self.task_names)
        # The loss is normalised over the whole step here; the stock division by accumulation steps must not follow.
        # It does for `micro_batch`, which is just that: the mean over micro-batches.
        self._loss_norm = options.loss_norm
        self.loss_is_scaled_for_ga = options.loss_norm == "step"
        self.step_weights = np.ones(self.weighter.num_tasks)
        self._micro_batches_left = 0
        self._tokens_seen = 0  # of this step, on this rank
        self._step_losses = self._zeros(len(task_names))
        self._step_faults = self._zeros(len(task_names))  # tokens whose loss is not finite
        self.step_counts = np.zeros(len(task_names), dtype=np.int64)
        self._log_losses = self._zeros(len(task_names))
        self._log_counts = np.zeros(len(task_names), dtype=np.int64)
        self._eval_losses = self._zeros(len(task_names))
        self._eval_counts = self._zeros(len(task_names))

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's own batches; overridden to say where they count samples twice."""
        loader = super().get_train_dataloader()
        at_once = self.args.train_batch_size * self.args.world_size
        rest = len(self.train_dataset) % at_once if hasattr(self.train_dataset, "__len__") else 0  # type: ignore[arg-type]
        if self.args.world_size > 1 and rest and not self.args.dataloader_drop_last:
            logger.warning(
                "The last batches of an epoch are filled up with %d samples of its beginning, which count twice there, "
                "as this Trainer loads data. dataloader_drop_last leaves the last batches out instead.",
                at_once - rest,
            )
        return loader

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the column of tasks; overridden because the stock list holds what the model's forward takes."""
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        for name in (self._task_column, "vitw_task_ids"):
            if name is not None and name not in columns:
                columns.append(name)

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
        known = self.known_counts(num_batches)
        if known is not None:
            batches: Any = _Batches(epoch_iterator, num_batches)
            self.step_counts = known
        else:
            batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
            if not batches:
                return [], None
            num_tasks = len(self.task_names)
            of_batches = [token_counts(batch["labels"], batch["vitw_task_ids"], num_tasks) for batch in batches]
            self.step_counts = self._sum_over_ranks(torch.stack(of_batches).sum(0), device)
        self.step_weights, divisor = self._weigh(self.step_counts)
        self._micro_batches_left = len(batches)
        return batches, torch.tensor(divisor, dtype=torch.float64)

    def known_counts(self, num_batches: int) -> np.ndarray | None:
        """n_k int64[T] of the step that begins, over all ranks, where that is known beforehand.

        Args:
            num_batches: the micro-batches of this rank in the step.
        """
        return None

    def _sum_over_ranks(self, counts: Tensor, device: torch.device) -> np.ndarray:
        """int64 counts of this rank → their sums."""
        return self.accelerator.reduce(counts.to(device), reduction="sum").cpu().numpy()

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
        outputs: TokenLosses = model(**inputs)
        losses, positions = outputs.token_losses, outputs.positions
        assert losses is not None
        assert positions is not None
        token_tasks = tasks_at(positions, inputs["vitw_task_ids"], inputs["labels"].shape[1])
        self._tokens_seen += len(positions)
        self._step_losses += self._per_task(losses.detach(), token_tasks)
        self._step_faults += self._per_task(~losses.detach().isfinite(), token_tasks)
        if self._loss_norm == "micro_batch":
            counts = torch.bincount(token_tasks, minlength=len(self.task_names)).cpu().numpy()
            weights, divisor = self._weigh(counts)
            scale = 1.0
        else:
            weights, divisor = self.step_weights, float(num_items_in_batch or 0)
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
        self._log_counts += self.step_counts
        own = self._step_losses.new_tensor([self._tokens_seen, *self.step_flags()])
        sums, faults, flags = self._summed(self._step_losses, self._step_faults, own)
        self._tokens_seen = 0
        seen, counted = int(flags[0]), int(self.step_counts.sum())
        if seen != counted:
            raise RuntimeError(
                f"step {self.state.global_step + 1}: its batches hold {seen} target tokens, but {counted} were counted "
                "for it: the collator must leave labels as the data set counts them"
            )
        self.agree(flags[1:])
        if bad := [name for name, fault in zip(self.task_names, faults, strict=True) if fault]:
            raise self._diverged(f"the loss of {', '.join(bad)} is not finite")
        if self.weighter.observes:
            self.weighter.observe(self.state.global_step, self._by_unit(sums), self._by_unit(self.step_counts))
        self._step_losses.zero_()

    def step_flags(self) -> list[float]:
        """Numbers of this rank that are to be summed over all ranks at the end of a step."""
        return []

    def agree(self, flags: np.ndarray) -> None:
        """Take the sums of `step_flags` over all ranks."""

    def _summed(self, *parts: Tensor) -> Iterator[np.ndarray]:
        """Sums over the ranks, float64, of 1-D tensors: one message, and one wait for its result."""
        total = self.accelerator.reduce(torch.cat(parts), reduction="sum").cpu().double()
        return (part.numpy() for part in total.split([len(part) for part in parts]))

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
            logs[f"task_weight/{name}"] = float(self.step_weights[unit])
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
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs: TokenLosses = model(**inputs)
        losses, positions = outputs.token_losses, outputs.positions
        assert losses is not None
        assert positions is not None
        token_tasks = tasks_at(positions, inputs["vitw_task_ids"], inputs["labels"].shape[1])
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
        """Save a checkpoint with the weighter's state in it; overridden because λ may depend on past losses."""
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            # First: the stock method lets older checkpoints go at its end.
            (folder / WEIGHTER_FILE).write_text(json.dumps(self.weighter.state_dict()))
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's state, and the weighter's with it: overridden because both belong to the same step."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / WEIGHTER_FILE
        if not file.is_file():
            raise ValueError(f"{checkpoint} has no {WEIGHTER_FILE}: it was not written by a trainer with weighted loss")
        self.weighter.load_state_dict(json.loads(file.read_text()))


class _Batches:
    """The micro-batches of a step, each fetched when its turn comes, but the first one at once.

    With its first batch a data loader draws from torch's generator. The Trainer sets that of a resumed run after this.
    """

    def __init__(self, iterator: Iterator, number: int) -> None:
        self.iterator = iterator
        self.number = number
        self.first = next(iterator)

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield self.first
        for _ in range(1, self.number):
            yield next(self.iterator)
