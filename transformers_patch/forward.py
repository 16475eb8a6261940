"""A forward that computes the loss of valid target tokens only.

`patch_forward(model)` changes one instance of any causal language model or multimodal model of transformers (Llama
first; LLaVA, Qwen2-VL, Qwen2.5-VL and others alike). A batch that holds `vitw_task_ids` then gives `TokenLosses`;
every other call is the stock forward. The stock forward runs unchanged up to its output head; only the head is given
the rows that predict a valid target. The head stays one call of one module, so hooks on it (ZeRO-3 gathers its weight
there, LoRA may wrap it) work, and ranks whose batches differ make the same sequence of collective calls.

Legend: B rows, S tokens, H hidden size, V vocabulary, n valid target tokens.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import ModelOutput

from transformers_patch.chunked import ChunkedCrossEntropy
from transformers_patch.loss import token_cross_entropy, valid_targets

LOSS_IMPLS = ("auto", "select", "chunked", "full")

CHUNK_LOGITS = 2**24
"""Logits per chunk of the chunked path: 64 MiB in float32."""
SELECT_LOGITS = 2**27
"""`auto` selects up to this many logits (512 MiB in float32, held about three times over) and chunks above it."""


@dataclass
class TokenLosses(ModelOutput):
    """token_losses: float32[n] (float64 for a float64 model), cross-entropy of each valid target, row by row."""

    token_losses: Tensor | None = None


def patch_forward(model: nn.Module, loss_impl: str = "auto", vocab_size: int | None = None) -> None:
    """Make `model(**batch)` return `TokenLosses` when the batch holds `labels` and `vitw_task_ids`.

    Args:
        model: a transformers model with an output head (`get_output_embeddings`), not yet wrapped by DDP or DeepSpeed.
            It may be wrapped by PEFT.
        loss_impl: `select` computes the logits [n, V] of valid targets; `chunked` the same chunk by
            chunk, so that its peak does not grow with n; `auto` whichever fits; `full` all logits
            [B, S, V], the plain reference.
        vocab_size: rows of the head from here up are padding and stay out of the softmax; None keeps all.

    Raises:
        ValueError: unknown `loss_impl`, a model without an output head, or one that `chunked` cannot take apart.
    """
    if loss_impl not in LOSS_IMPLS:
        raise ValueError(f"loss_impl must be one of {', '.join(LOSS_IMPLS)}, got {loss_impl!r}")
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(base).__name__} has no output head")
    if hasattr(base, "_vitw_stock_forward"):
        base.forward, head.forward = base._vitw_stock_forward, head._vitw_stock_forward
    if loss_impl == "chunked" and type(head) is not nn.Linear:
        raise ValueError(f"loss_impl chunked needs a plain linear output head, not {type(head).__name__}: use select")
    target_head = _TargetHead(head, loss_impl, vocab_size)
    stock_forward = base.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("vitw_task_ids") is None or kwargs.get("labels") is None:
            return stock_forward(*args, **kwargs)
        kwargs.pop("vitw_task_ids")
        with target_head.targets_of(kwargs.pop("labels")):
            # `use_cache=False`: a cache is of no use here, and packed rows are told apart only without one.
            output = stock_forward(*args, **{**kwargs, "use_cache": False, "return_dict": True})
            return TokenLosses(token_losses=target_head.token_losses(output.logits))

    base._vitw_stock_forward, head._vitw_stock_forward = stock_forward, head.forward
    base.forward = types.MethodType(forward, base)
    head.forward = types.MethodType(lambda _, hidden: target_head(hidden), head)


class _TargetHead:
    """Stands in for the forward of the output head while a batch with targets passes through the model."""

    def __init__(self, head: nn.Module, loss_impl: str, vocab_size: int | None) -> None:
        self._head: Any = head
        self._logits: Callable[[Tensor], Tensor] = head.forward
        self._loss_impl = loss_impl
        self._vocab_size = vocab_size
        # A quantised head, or one that LoRA wraps, is more than its weight: its own forward has to run.
        self._plain = type(head) is nn.Linear
        self._labels: Tensor | None = None
        self._chunked: Tensor | None = None

    @contextmanager
    def targets_of(self, labels: Tensor) -> Iterator[None]:
        self._labels = labels
        try:
            yield
        finally:
            self._labels = self._chunked = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, H] → logits [n, V] (`select`), token losses [n] (`chunked`) or logits [B, S, V] (`full`)."""
        if self._labels is None or self._loss_impl == "full":
            return self._logits(hidden)
        mask = valid_targets(self._labels).to(hidden.device)
        rows = hidden[:, :-1][mask]
        small = len(rows) * int(self._head.out_features) <= SELECT_LOGITS
        if self._loss_impl == "select" or (self._loss_impl == "auto" and (small or not self._plain)):
            return self._logits(rows)
        self._chunked = self._chunked_losses(rows, self._targets(mask))
        return self._chunked

    def token_losses(self, head_output: Tensor) -> Tensor:
        """What the model made of the head's output → cross-entropy [n] of the valid targets."""
        assert self._labels is not None
        if self._chunked is not None:
            # By value, not identity: DeepSpeed puts a node of its own behind the head's output.
            if not torch.equal(head_output.detach(), self._chunked.detach()):
                raise ValueError("this model changes its logits after the output head: use --loss_impl select")
            return head_output
        mask = valid_targets(self._labels).to(head_output.device)
        if head_output.dim() == 2:
            return self._cross_entropy(head_output, self._targets(mask))
        targets = self._labels[:, 1:].to(head_output.device)
        losses = self._cross_entropy(head_output[:, :-1].flatten(0, 1), targets.flatten())
        return losses.view(targets.shape)[mask]

    def _targets(self, mask: Tensor) -> Tensor:
        assert self._labels is not None
        return self._labels[:, 1:].to(mask.device)[mask]

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return token_cross_entropy(logits[:, : self._vocab_size], targets)

    def _chunked_losses(self, rows: Tensor, targets: Tensor) -> Tensor:
        weight, bias = self._head.weight[: self._vocab_size], self._head.bias
        bias = None if bias is None else bias[: self._vocab_size]
        return ChunkedCrossEntropy.apply(rows, weight, bias, targets, max(1, CHUNK_LOGITS // len(weight)))
