"""LLaVA's projector types inside transformers' LLaVA classes.

``mlp2x_gelu`` is transformers' own projector, untouched, so that such a model loads in any engine. The other types
put ``LlavaProjector`` in its place; ``config.mm_projector_type`` says which, and our loader makes it again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlavaConfig
from transformers.activations import ACT2FN

from llava.model.upstream import projector_class

STOCK_TYPE = "mlp2x_gelu"
STRATEGIES = {"patch": "default", "cls_patch": "full"}
"""What is read from the tower's layer: LLaVA's name → transformers'."""


@dataclass(frozen=True)
class VisionFeatures:
    """Which features of the tower a LLaVA reads, and what leads them into the language model.

    Attributes:
        projector_type: identity, linear or mlpNx_gelu.
        layer: the hidden state of the tower that is read (LLaVA: -2).
        feature: "patch", or "cls_patch" to keep the class token.
    """

    projector_type: str = STOCK_TYPE
    layer: int = -2
    feature: str = "patch"

    @classmethod
    def of(cls, config: LlavaConfig) -> VisionFeatures:
        """Those of a model's configuration."""
        layer: Any = config.vision_feature_layer
        names = {theirs: name for name, theirs in STRATEGIES.items()}
        return cls(projector_type_of(config), layer, names[config.vision_feature_select_strategy])


def text_of(config: LlavaConfig) -> Any:
    """The language model's part of a configuration (which transformers types as "maybe a dict, maybe None")."""
    return config.text_config


def vision_of(config: LlavaConfig) -> Any:
    """The vision tower's part of a configuration."""
    return config.vision_config


def projector_depth(projector_type: str) -> int:
    """Number of linear layers: identity 0, linear 1, mlpNx_gelu N."""
    if projector_type == "identity":
        return 0
    if projector_type == "linear":
        return 1
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", projector_type)
    if not match:
        raise ValueError(f"unknown projector type {projector_type!r}; known: identity, linear, mlpNx_gelu")
    return int(match.group(1))


def projector_type_of(config: LlavaConfig) -> str:
    """The projector type a configuration names; transformers' own if it names none."""
    return getattr(config, "mm_projector_type", None) or STOCK_TYPE


def projector_shapes(projector_type: str, vision_size: int, text_size: int) -> list[tuple[int, int]]:
    """``(out, in)`` of each linear layer in order. Raises ValueError if an identity cannot join the two sizes."""
    depth = projector_depth(projector_type)
    if depth == 0 and vision_size != text_size:
        raise ValueError(
            f"an identity projector needs equal widths, but the vision tower gives {vision_size} features "
            f"and the language model takes {text_size}"
        )
    return [(text_size, vision_size if layer == 0 else text_size) for layer in range(depth)]


class LlavaProjector(nn.Module):
    """``linear_1 … linear_N`` with GELU between: the stock projector's names for any N."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        shapes = projector_shapes(projector_type_of(config), vision_of(config).hidden_size, text_of(config).hidden_size)
        self.depth = len(shapes)
        self.act = ACT2FN[config.projector_hidden_act]
        for number, (width_out, width_in) in enumerate(shapes, start=1):
            setattr(self, f"linear_{number}", nn.Linear(width_in, width_out, bias=config.multimodal_projector_bias))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """``float[..., vision width] → float[..., text width]``."""
        for number in range(1, self.depth + 1):
            if number > 1:
                image_features = self.act(image_features)
            image_features = getattr(self, f"linear_{number}")(image_features)
        return image_features


@contextlib.contextmanager
def projector_for(config: LlavaConfig) -> Iterator[None]:
    """While open, transformers builds LLaVA models with the projector that ``config`` names."""
    with projector_class(None if projector_type_of(config) == STOCK_TYPE else LlavaProjector):
        yield


def original_names(projector_type: str) -> dict[str, str]:
    """Original LLaVA's parameter names below ``mm_projector.`` → ours below ``multi_modal_projector.``."""
    depth = projector_depth(projector_type)
    # original: one bare Linear, or Sequential(Linear, GELU, Linear, …) whose linears have the even numbers
    prefixes = [""] if projector_type == "linear" else [f"{2 * layer}." for layer in range(depth)]
    return {
        f"{prefix}{kind}": f"linear_{number}.{kind}"
        for number, prefix in enumerate(prefixes, start=1)
        for kind in ("weight", "bias")
    }
