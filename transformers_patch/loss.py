"""The token-level task-weighted loss (VITW, Equation 2), as sums that are divided once.

Legend: B rows, S tokens, N tasks, n valid target tokens. A label is the target of the position before it, so the
targets of a row are labels[:, 1:]; those equal to IGNORE_INDEX are not valid. Valid targets are listed row by row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
LOSS_NORMS = ("step", "micro_batch")


def valid_targets(labels: Tensor) -> Tensor:
    """Return bool[B, S-1], true where position s of int64[B, S] `labels` predicts a valid target (labels[s+1])."""
    return labels[:, 1:] != IGNORE_INDEX


def target_tasks(labels: Tensor, task_ids: Tensor) -> Tensor:
    """Return the task int64[n] of every valid target.

    Args:
        labels: int64[B, S].
        task_ids: int64[B], or int64[B, S] where a row packs several samples (a target has the task of its own token).
    """
    per_token = task_ids[:, 1:] if task_ids.dim() == 2 else task_ids[:, None].expand(-1, labels.shape[1] - 1)
    return per_token[valid_targets(labels)]


def target_positions(labels: Tensor) -> Tensor:
    """Return where the n valid targets are predicted: places int64[n] p in the B·S of a batch, target at p + 1.

    On a GPU the program waits here for the number n. All else that concerns targets is looked up by these places.
    """
    valid = torch.zeros_like(labels, dtype=torch.bool)
    valid[:, :-1] = valid_targets(labels)
    return valid.flatten().nonzero().squeeze(1)


def tasks_at(positions: Tensor, task_ids: Tensor, row_length: int) -> Tensor:
    """Return the tasks int64[n] of the targets predicted at `positions` int64[n]; `row_length` is S."""
    return task_ids[positions // row_length] if task_ids.dim() == 1 else task_ids.flatten()[positions + 1]


def token_counts(labels: Tensor, task_ids: Tensor, num_tasks: int) -> Tensor:
    """Return n_k int64[N], the valid target tokens of each task in one micro-batch."""
    return torch.bincount(target_tasks(labels, task_ids), minlength=num_tasks)


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return CE [n] of logits [n, V] and targets int64[n] in float32 (float64 stays float64)."""
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="none")


def task_loss_sums(token_losses: Tensor, tasks: Tensor, num_tasks: int) -> Tensor:
    """Return Σ CE per task [N] from [n] token losses and their tasks int64[n]; in the dtype of the losses.

    A product with the one-hot task matrix rather than a scatter: the same sum in the same order on every run.
    """
    one_hot = tasks[:, None] == torch.arange(num_tasks, device=tasks.device)
    return one_hot.to(token_losses.dtype).T @ token_losses
