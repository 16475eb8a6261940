"""The weighted loss against the model's own, on two samples before the first step.

A model's own loss may be more than the cross-entropy of its head's output: logits that it caps or scales, losses of its
experts, text that it masks. What differs is found here, and not in a result that nobody doubts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llava.data.collator import Collator
from llava.data.dataset import InstructionDataset
from llava.train.arguments import UsageError
from transformers_patch.loss import valid_targets

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative difference that rounding alone can make; half precision is allowed `HALF_TOLERANCE`."""
HALF_TOLERANCE = 2e-2


Prepare = Callable[[dict[str, Any]], dict[str, Any]]
"""Puts a batch on the model's device, in its dtype under DeepSpeed."""


@torch.no_grad()
def check_loss(
    net: nn.Module, name: str, collator: Collator, samples: InstructionDataset, prepare: Prepare = dict
) -> None:
    """Compare Σ CE of two samples in one batch, as training computes it, with the model's own loss of each alone.

    To be called on every rank; all take the same samples. `collator` packs where training packs.

    Raises UsageError where the two differ.
    """
    chosen = [samples[index] for index in _shortest(samples)]
    was_training = net.training
    net.eval()
    try:
        ours = float(net(**prepare(collator(chosen))).token_losses.double().sum())
        alone = Collator(collator.processor, collator.model_max_length)
        stock = sum(_stock_sum(net, prepare(alone([sample]))) for sample in chosen)
    finally:
        net.train(was_training)
    first = next(net.parameters())
    half = torch.is_autocast_enabled(first.device.type)
    allowed = HALF_TOLERANCE if half else TOLERANCE.get(first.dtype, HALF_TOLERANCE)
    if not abs(ours - stock) <= allowed * max(1.0, abs(stock)):
        packed = ", packed" if collator.packing else ""
        raise UsageError(
            f"{name}: the summed loss of two samples in one batch{packed} is {ours:.6g}, by the model itself, one by "
            f"one, {stock:.6g}. Its loss is more than the cross-entropy of its answers, or its samples are not kept "
            "apart: it cannot be trained with the weighted loss"
        )


def _shortest(samples: InstructionDataset) -> list[int]:
    """The shortest sample with an image and the shortest without, else the two shortest."""
    order = np.argsort(samples.lengths, kind="stable")
    kinds = [order[samples.has_image[order] == kind][:1] for kind in (True, False)]
    found = [int(index) for kind in kinds for index in kind]
    return found if len(found) == 2 else [int(index) for index in order[:2]]


def _stock_sum(net: nn.Module, batch: dict[str, Any]) -> float:
    """The model's own mean loss times the number of its targets."""
    batch.pop("vitw_task_ids")
    loss: Tensor = net(**batch, use_cache=False).loss
    return float(loss.double()) * int(valid_targets(batch["labels"]).sum())
