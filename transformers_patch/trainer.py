"""Our own Trainer: the mix-in's loss, with data loading that counts no sample twice and checkpoints that are whole."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints

from transformers_patch.arguments import VitwTrainingArguments
from transformers_patch.checkpoint import (
    COMPLETE,
    DivergedError,
    describe_nonfinite,
    load_full_model,
    mark_complete,
)
from transformers_patch.mixin import VitwMixin
from transformers_patch.preempt import Preemption, shield_worker
from transformers_patch.sampler import EpochBatchSampler, EpochOrder, PaddedDataset, sequential, shuffled
from transformers_patch.weighter import Weighter


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


class VitwTrainer(VitwMixin, Trainer):
    """transformers' Trainer with the task-weighted token loss and the project's own data loading.

    Batches hold `input_ids` and `labels` int64[B, S], `vitw_task_ids` int64[B] (int64[B, S] when packed) and whatever
    else the model takes.

    Args:
        task_names: names of the T tasks in the order of `vitw_task_ids`.
        weighter: the weighting method over N units.
        train_dataset: its `task_ids` and `target_tokens`, both int[samples], tell each task's target tokens of a step
            beforehand; without them a step's batches are fetched before its first forward.
        train_order: epoch → permutation of the training samples; None shuffles them by (data_seed or seed, epoch).
        even_ranks: deal the samples of a step to the batches of all ranks by `train_dataset.lengths` int[samples]; for
            batches without padding.
        load_model: folder of a full checkpoint → model, to resume from; None is the model class's `from_pretrained`.
        kwargs: `task_units` and `vocab_size` of the mix-in, and whatever the stock Trainer takes.
    """

    args: VitwTrainingArguments

    def __init__(
        self,
        model: nn.Module,
        args: VitwTrainingArguments,
        *,
        task_names: Sequence[str],
        weighter: Weighter,
        train_order: EpochOrder | None = None,
        even_ranks: bool = False,
        load_model: Callable[[str], PreTrainedModel] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, task_names=task_names, weighter=weighter, task_column=None, **kwargs)
        self.train_order = train_order
        self.even_ranks = even_ranks
        self.load_model = load_model
        self.add_callback(_NoGradientsOfInputs())
        self._epoch_steps: list[np.ndarray] | None = None
        self._next_step = 0
        self.preemption = Preemption()
        self.add_callback(self.preemption)

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
        size, of_step = self.args.train_batch_size, self.args.samples_per_step
        lengths = dataset.lengths if self.even_ranks else None
        self._train_batches = EpochBatchSampler(order, len(dataset), size, self.args.world_size, of_step, lengths)
        return self._loader(dataset, self._train_batches)

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Tell the sampler its epoch and the first step of it, then run it.

        Overridden because the stock code does not reach the sampler of a resumed epoch on several ranks, and no public
        hook comes before an epoch's first batch is drawn.
        """
        self._train_batches.set_epoch(kwargs["epoch"])
        resumed = kwargs["epoch"] == kwargs["epochs_trained"] and kwargs["resume_from_checkpoint"] is not None
        batches_done = kwargs["steps_trained_in_current_epoch"] if resumed and not self.args.ignore_data_skip else 0
        self._next_step = batches_done // self.args.gradient_accumulation_steps
        if hasattr(self.train_dataset, "target_tokens"):
            self._epoch_steps = self._train_batches.steps()
        super()._run_epoch(**kwargs)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """The batches of an evaluation in the order of the data; overridden for the same blanks as in training."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = cast(dict[str, Any], self.eval_dataset)[dataset]
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset")
        order, size = sequential(len(dataset)), self.args.eval_batch_size
        return self._loader(dataset, EpochBatchSampler(order, len(dataset), size, self.args.world_size))

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

    def known_counts(self, num_batches: int) -> np.ndarray | None:
        """n_k of the step from `target_tokens` of the data set, if it has them.

        Overridden because the sampler says which samples all ranks have in the step, so that no rank has to fetch its
        batches first, nor to hear of those of others.
        """
        if self._epoch_steps is None:
            return None
        dataset: Any = self.train_dataset
        step, self._next_step = self._next_step, self._next_step + 1
        if num_batches != self._train_batches.batches_of_step(step):
            raise RuntimeError(f"step {step + 1} of the epoch is not of {num_batches} micro-batches")
        samples = self._epoch_steps[step]
        tasks, counts = dataset.task_ids[samples], dataset.target_tokens[samples]
        return np.bincount(tasks, weights=counts, minlength=len(self.task_names)).astype(np.int64)

    def step_flags(self) -> list[float]:
        """Whether this rank was asked to stop."""
        return [float(self.preemption.requested)]

    def agree(self, flags: np.ndarray) -> None:
        """Stop after this step where any rank was asked to."""
        self.preemption.agreed = bool(flags[0])

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the step's gradient, before the optimizer's step (DeepSpeed: after); it is the same on all ranks.

        Raises:
            DivergedError: it is not finite. Under fp16 that is expected while the loss scale is being found: the step
                is left out by whoever scales, and only a scale below 1 is too small to be the reason.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        # DeepSpeed gives None for a norm that it was told not to compute, and may give -1 for one that is not finite.
        if norm is not None and not 0 <= float(norm) < math.inf and not self._scaling():
            tasks = [name for name, count in zip(self.task_names, self.step_counts, strict=True) if count]
            raise self._diverged(f"the norm of the gradient is not finite (tasks of the step: {', '.join(tasks)})")
        return norm

    def _scaling(self) -> bool:
        if not self.args.fp16:
            return False
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler is None or scaler.get_scale() >= 1

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


def _make_room(folder: Path) -> None:
    """Remove what is left of a checkpoint that was cut off, whose files must not be taken for those of the new one."""
    if (folder / COMPLETE).is_file():
        (folder / COMPLETE).unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
