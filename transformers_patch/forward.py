"""A forward that computes the loss of valid target tokens only.

`patch_forward(model)` changes one instance of a causal language model or multimodal model of transformers (Llama
first; LLaVA, Qwen2-VL, Qwen2.5-VL and others alike) that predicts its own input, token by token. A batch that holds
`vitw_task_ids` then gives `TokenLosses`; every other call is the stock forward, under the stock signature, which
`generate` reads. The stock forward runs unchanged up to its output head; only the head is given
the rows that predict a valid target. The head stays one call of one module, so hooks on it (ZeRO-3 gathers its weight
there, LoRA may wrap it) work, and ranks whose batches differ make the same sequence of collective calls.

Legend: B rows, S tokens, H hidden size, V vocabulary, n valid target tokens.
"""

from __future__ import annotations

import inspect
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
from transformers_patch.loss import target_positions, token_cross_entropy

LOSS_IMPLS = ("auto", "select", "chunked", "full")

CHUNK_LOGITS = 2**24
"""Logits per chunk of the chunked path: 64 MiB in float32."""
SELECT_LOGITS = 2**27
"""`auto` selects up to this many logits (512 MiB in float32, held about three times over) and chunks above it."""

_BOTH_WAYS = "it reads a text in both directions, so that a position sees its target"
_MASKED_IMAGES = "it wants the logits of every position at once, to mask those of image tokens"
_OTHER_POSITIONS = "its logits stand at other positions than its input, which images lengthen"
_STREAMS = "it predicts several tokens ahead in streams of its own"
UNSUPPORTED = {
    "chameleon": _MASKED_IMAGES,
    "git": _OTHER_POSITIONS,
    "prophetnet": _STREAMS,
    **dict.fromkeys(("xlnet", "xlm", "flaubert"), _BOTH_WAYS),
}
"""Model type (`config.model_type`) → why the loss of its valid targets is not to be had in this way."""
# fmt: off
_ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
)
# fmt: on
"""Encoders whose language models are decoders only where `config.is_decoder` says so."""
_EXPERT_LOSS = (
    "{} adds a loss of its own for the balance of its experts (output_router_logits), which has no task and no share "
    "in the weighted loss: set output_router_logits to False in its configuration (text_config of a multimodal one; in "
    "TRL by router_aux_loss_coef=0.0)"
)


@dataclass
class TokenLosses(ModelOutput):
    """Cross-entropy of each valid target, row by row.

    token_losses: float32[n] (float64 for a float64 model).
    positions: int64[n], where they are predicted, as `target_positions` gives them.
    """

    token_losses: Tensor | None = None
    positions: Tensor | None = None


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
        ValueError: unknown `loss_impl`, a model that is no decoder over its own input, has no output head or adds a
            loss of its experts, or one that `chunked` cannot take apart.
    """
    if loss_impl not in LOSS_IMPLS:
        raise ValueError(f"loss_impl must be one of {', '.join(LOSS_IMPLS)}, got {loss_impl!r}")
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    _check_supported(base)
    head = base.get_output_embeddings()
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
            inputs = {**kwargs, "use_cache": False, "return_dict": True}
            generators = _generators() if target_head.undecided else None
            output = stock_forward(*args, **inputs)
            _check_no_expert_loss(type(base).__name__, output)
            if generators is not None and not target_head.decide(output.logits):
                _set_generators(generators)
                output = stock_forward(*args, **inputs)
            losses = target_head.token_losses(output.logits)
            return TokenLosses(token_losses=losses, positions=target_head.positions)

    # `generate` and others find out from the signature what a model takes.
    forward.__signature__ = _with_self(inspect.signature(stock_forward))  # type: ignore[attr-defined]
    base._vitw_stock_forward, head._vitw_stock_forward = stock_forward, head.forward
    base.forward = types.MethodType(forward, base)
    head.forward = types.MethodType(lambda _, hidden: target_head(hidden), head)


def check_config(name: str, config: Any) -> None:
    """Raise ValueError, which names the model `name`, where its targets are not the next tokens of its own input."""
    parts = [config, *(getattr(config, key) for key in config.sub_configs if getattr(config, key, None) is not None)]
    if any(part.is_encoder_decoder for part in parts):
        raise ValueError(
            f"{name} is an encoder-decoder: its answer goes into a decoder of its own. The weighted loss is for models "
            "that predict the next token of their one input (decoders)"
        )
    for part in parts:
        if part.model_type in UNSUPPORTED:
            raise ValueError(f"{name} ({part.model_type}) has no weighted loss here: {UNSUPPORTED[part.model_type]}")
        if part.model_type in _ENCODERS and part is config and not part.is_decoder:
            raise ValueError(f"{name} has no weighted loss here: {_BOTH_WAYS}, unless its `config.is_decoder` is true")
        if getattr(part, "output_router_logits", False):
            raise ValueError(_EXPERT_LOSS.format(name))


def _check_supported(base: Any) -> None:
    name = type(base).__name__
    check_config(name, base.config)
    if base.get_output_embeddings() is None:
        raise ValueError(f"{name} has no output head")


def _check_no_expert_loss(name: str, output: Any) -> None:
    if getattr(output, "aux_loss", None) is not None:
        raise ValueError(_EXPERT_LOSS.format(name))


def _with_self(signature: inspect.Signature) -> inspect.Signature:
    """The signature of a bound method → that of its function."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[own, *signature.parameters.values()])


def _generators() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_generators(states: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])


class _TargetHead:
    """Stands in for the forward of the output head while a batch with targets passes through the model.

    `auto` may chunk only where the model leaves its logits as the head gives them; many scale or cap them. Its first
    batch shows which: if what comes out of the model is not what the head gave, that forward is done once more and
    `auto` selects from then on. Since this is a property of the model, all ranks find the same and do the same number
    of forwards, which ZeRO-3 needs.
    """

    def __init__(self, head: nn.Module, loss_impl: str, vocab_size: int | None) -> None:
        self._head: Any = head
        self._logits: Callable[[Tensor], Tensor] = head.forward
        self._loss_impl = loss_impl
        self._vocab_size = vocab_size
        # A quantised head, or one that LoRA wraps, is more than its weight: its own forward has to run.
        self._plain = type(head) is nn.Linear
        self._labels: Tensor | None = None
        self.positions: Tensor | None = None
        self._given: Tensor | None = None
        self._chunked = False
        self.undecided = loss_impl == "auto" and self._plain

    @contextmanager
    def targets_of(self, labels: Tensor) -> Iterator[None]:
        self._labels, self.positions = labels, target_positions(labels)
        try:
            yield
        finally:
            self._labels = self.positions = self._given = None
            self._chunked = False

    def decide(self, head_output: Tensor) -> bool:
        """Learn from the first batch whether `auto` may chunk; False: what the head gave is of no use, do it again."""
        self.undecided = False
        if self._unchanged(head_output):
            return True
        self._loss_impl, self._chunked = "select", False
        return False

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, H] → logits [n, V] (`select`), token losses [n] (`chunked`) or logits [B, S, V] (`full`)."""
        if self._labels is None or self._loss_impl == "full":
            return self._logits(hidden)
        self._check_shape(hidden)
        rows = hidden.flatten(0, 1).index_select(0, self._positions(hidden))
        if self.undecided and not len(rows):
            rows = hidden[0, :1]  # something has to be there to be compared; `token_losses` drops it
        small = len(rows) * int(self._head.out_features) <= SELECT_LOGITS
        if self._loss_impl == "select" or (self._loss_impl == "auto" and (small or not self._plain)):
            self._given = self._logits(rows)
        else:
            self._given, self._chunked = self._chunked_losses(rows, self._targets(hidden)), True
        return self._given

    def token_losses(self, head_output: Tensor) -> Tensor:
        """What the model made of the head's output → cross-entropy [n] of the valid targets."""
        assert self._labels is not None
        if self._chunked:
            if not self._unchanged(head_output):
                raise ValueError("this model changes its logits after the output head: use --loss_impl select")
            return head_output
        targets = self._targets(head_output)
        if head_output.dim() == 2 and self._given is not None:
            return self._cross_entropy(head_output[: len(targets)], targets)
        self._check_shape(head_output)
        targets = self._labels[:, 1:].to(head_output.device)
        losses = self._cross_entropy(head_output[:, :-1].flatten(0, 1), targets.flatten())
        # The last position of a row predicts nothing, so that the places of losses shift by one a row.
        positions = self._positions(head_output)
        return losses[positions - positions // self._labels.shape[1]]

    def _check_shape(self, output: Tensor) -> None:
        assert self._labels is not None
        if output.shape[:-1] != self._labels.shape:
            raise ValueError(
                f"this model gives logits {list(output.shape)} for labels {list(self._labels.shape)}, not one row "
                "for each token of its input: it has no weighted loss here"
            )

    def _unchanged(self, head_output: Tensor) -> bool:
        """Whether the model hands on what the head gave; NaN, which equals nothing, is no change."""
        assert self._given is not None
        # By value, not identity: DeepSpeed puts a node of its own behind the head's output.
        given, output = self._given.detach(), head_output.detach()
        if output.shape != given.shape:
            return False
        output = output.to(given)
        return torch.equal(output, given) or torch.equal(output.nan_to_num(), given.nan_to_num())

    def _positions(self, like: Tensor) -> Tensor:
        assert self.positions is not None
        return self.positions.to(like.device)

    def _targets(self, like: Tensor) -> Tensor:
        assert self._labels is not None
        return self._labels.to(like.device).flatten()[self._positions(like) + 1]

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return token_cross_entropy(logits[:, : self._vocab_size], targets)

    def _chunked_losses(self, rows: Tensor, targets: Tensor) -> Tensor:
        weight, bias = self._head.weight[: self._vocab_size], self._head.bias
        bias = None if bias is None else bias[: self._vocab_size]
        return ChunkedCrossEntropy.apply(rows, weight, bias, targets, max(1, CHUNK_LOGITS // len(weight)))
