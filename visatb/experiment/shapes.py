"""What a model's configuration tells of its size: widths, layers, parameters, floating-point operations of a sample.

Legend: h hidden size, i intermediate size, L layers, V vocabulary, S tokens of a sample.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Decoder:
    """The language part: a decoder with grouped attention and a gated MLP, as Llama's and Qwen's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @property
    def layer_weights(self) -> int:
        """Parameters of one layer's matrices."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.key_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All of them: layers, embeddings, output head (once where tied)."""
        return self.layers * (self.layer_weights + 2 * self.hidden) + self.head * (1 if self.tied else 2) + self.hidden

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.vocabulary * self.hidden

    def forward_flops(self, tokens: float, targets: float) -> float:
        """One forward of a sample: matrices, dense attention, and the head at `targets` positions."""
        attention = 4 * tokens * tokens * self.heads * self.head_size * self.layers
        return 2 * tokens * self.layers * self.layer_weights + attention + 2 * targets * self.head

    @property
    def kept_in_layer(self) -> float:
        """Values of two bytes that a layer keeps for its backward, a token.

        Two norms (each its input in float32, what is normed, what comes out), queries, keys, values, attention's
        output, and four of the MLP: gate, up, gate after its function, their product.
        """
        attention = self.head_size * (2 * self.heads + 2 * self.key_heads)
        return 8 * self.hidden + attention + 4 * self.intermediate


@dataclass(frozen=True)
class Tower:
    """The vision part: L layers over `patches` patches of an image, which become `tokens` tokens of the prompt."""

    hidden: int
    intermediate: int
    layers: int
    patches: int
    tokens: int

    @property
    def parameters(self) -> int:
        """Parameters of its layers' matrices."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)

    @property
    def forward_flops(self) -> float:
        """One forward of an image."""
        return 2 * self.patches * self.parameters + 4 * self.patches**2 * self.hidden * self.layers


@dataclass(frozen=True)
class Shape:
    """A model's parts; `projector`: its parameters."""

    decoder: Decoder
    tower: Tower
    projector: int

    @property
    def learning(self) -> int:
        """Parameters that learn in full training: language part and projector."""
        return self.decoder.parameters + self.projector

    @property
    def parameters(self) -> int:
        """All parameters, biases and norms of the tower aside."""
        return self.learning + self.tower.parameters


_CLIP_LARGE = Tower(1024, 4096, 24, 577, 576)
_QWEN_TOWER = Tower(1280, 5120, 32, 1564, 391)  # an image of 640 × 480 pixels


def _llava(decoder: Decoder) -> Shape:
    return Shape(decoder, _CLIP_LARGE, (_CLIP_LARGE.hidden + decoder.hidden) * decoder.hidden)


def _qwen(decoder: Decoder) -> Shape:
    merged = 4 * _QWEN_TOWER.hidden
    return Shape(decoder, _QWEN_TOWER, merged * merged + merged * decoder.hidden)


_LLAMA_7B = Decoder(4096, 11008, 32, 32, 32, 128, 32_000)
_LLAMA_13B = Decoder(5120, 13824, 40, 40, 40, 128, 32_000)
# Published models that are named in an experiment file before they are on this machine.
_KNOWN: Mapping[str, Shape] = {
    r"(vicuna|llava-v1\.5|llava-1\.5|llama-2)-7b": _llava(_LLAMA_7B),
    r"(vicuna|llava-v1\.5|llava-1\.5|llama-2)-13b": _llava(_LLAMA_13B),
    r"qwen2-vl-2b": _qwen(Decoder(1536, 8960, 28, 12, 2, 128, 151_936, tied=True)),
    r"qwen2-vl-7b": _qwen(Decoder(3584, 18944, 28, 28, 4, 128, 152_064)),
    r"qwen2\.5-vl-3b": _qwen(Decoder(2048, 11008, 36, 16, 2, 128, 151_936, tied=True)),
    r"qwen2\.5-vl-7b": _qwen(Decoder(3584, 18944, 28, 28, 4, 128, 152_064)),
}


def shape_of(model: str) -> Shape | None:
    """The shape of a saved model, or of a published one by its name; None where neither tells."""
    try:
        content = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        return shape_from_config(content)
    except (OSError, ValueError, LookupError, TypeError):
        name = Path(model).name.lower()
        return next((shape for pattern, shape in _KNOWN.items() if re.search(pattern, name)), None)


def shape_from_config(config: Mapping[str, Any]) -> Shape:
    """The shape that a `config.json` describes; LookupError or TypeError where it lacks what is needed."""
    text = config.get("text_config") or config
    heads = text["num_attention_heads"]
    decoder = Decoder(
        text["hidden_size"],
        text["intermediate_size"],
        text["num_hidden_layers"],
        heads,
        text.get("num_key_value_heads") or heads,
        text.get("head_dim") or text["hidden_size"] // heads,
        text.get("vocab_size") or config["vocab_size"],
        bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
    )
    vision = config.get("vision_config")
    if not vision:  # the language part alone; towers of LLaVA's parts are CLIP's
        return _llava(decoder)
    width = vision.get("embed_dim") or vision["hidden_size"]
    tower = Tower(
        width,
        vision.get("intermediate_size") or int(width * vision.get("mlp_ratio", 4)),
        vision.get("num_hidden_layers") or vision["depth"],
        *_image_tokens(vision),
    )
    merged = width * _merge(vision) ** 2
    return Shape(decoder, tower, (merged + decoder.hidden) * decoder.hidden)


def _merge(vision: Mapping[str, Any]) -> int:
    return int(vision.get("spatial_merge_size") or 1)


def _image_tokens(vision: Mapping[str, Any]) -> tuple[int, int]:
    """Patches and tokens of an image: of the tower's own size, else of 640 × 480 pixels."""
    size, patch = vision.get("image_size"), int(vision["patch_size"])
    patches = (size // patch) ** 2 if isinstance(size, int) else (640 // patch) * (480 // patch)
    return patches, patches // _merge(vision) ** 2
