"""Cross-entropy of an output head without its logits: memory does not grow with the number of tokens.

Forward keeps one number per token (the log-sum-exp); backward computes the logits of a chunk again, and adds to one
gradient of the head. Legend: n tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class ChunkedCrossEntropy(torch.autograd.Function):
    """`apply(rows [n, H], weight [V, H], bias [V] or None, targets int64[n], chunk)` → cross-entropy [n].

    Products are done in autocast's dtype if it is on, softmax and losses in float32 (float64 stays float64); the
    head's gradient is summed over chunks in float32. `chunk` is the number of tokens per chunk.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int) -> Tensor:
        device = rows.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if autocast else rows.dtype
        ctx.chunk = chunk
        exact = torch.promote_types(rows.dtype, torch.float32)
        log_sums, losses = rows.new_empty(2, len(rows), dtype=exact)
        for part, logits in _chunks(rows, weight, bias, ctx.dtype, exact, chunk):
            log_sums[part] = logits.logsumexp(dim=1)
            losses[part] = log_sums[part] - logits.gather(1, targets[part, None])[:, 0]
        ctx.save_for_backward(rows, weight, bias, targets, log_sums)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, weight, bias, targets, log_sums = ctx.saved_tensors
        exact = log_sums.dtype
        head_weight = weight.to(ctx.dtype)
        grad_rows = torch.empty_like(rows)
        grad_weight = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if ctx.needs_input_grad[2] else None
        for part, logits in _chunks(rows, weight, bias, ctx.dtype, exact, ctx.chunk):
            # d loss / d logits = softmax − one-hot of the target
            probabilities = logits.sub_(log_sums[part, None]).exp_()
            probabilities.scatter_add_(1, targets[part, None], -torch.ones_like(log_sums[part, None]))
            probabilities.mul_(gradient[part, None])
            if grad_bias is not None:
                grad_bias += probabilities.sum(0)
            scaled = probabilities.to(ctx.dtype)
            grad_rows[part] = (scaled @ head_weight).to(rows.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, scaled.T, rows[part].to(ctx.dtype))
        return (
            grad_rows,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _chunks(
    rows: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, exact: torch.dtype, chunk: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield each chunk's slice and logits [≤ chunk, V], multiplied in `dtype`, held in `exact`."""
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        yield part, F.linear(rows[part].to(dtype), weight, bias).to(exact)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a temporary where the dtypes allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
