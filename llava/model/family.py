"""The registry of model families, and what data and inference need to know of one.

Legend: n images, H W pixels, S tokens, R position rows.

A family is found by ``config.model_type``, never by a folder's name. One that promises more than transformers' own
processor gives is a file in ``llava/model/families`` and a line in ``_FAMILIES``. Every other image-text model of
transformers is a `llava.model.generic.GenericFamily`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from eval.files import write_text
from transformers_patch.checkpoint import load_whole

TEMPLATE_KEY = "conversation_template"
PROCESSOR_CONFIG = "processor_config.json"

# config.model_type → "module:class"; imported when first asked for
_FAMILIES = {
    "llava": "llava.model.families.llava:LlavaFamily",
    "qwen2_vl": "llava.model.families.qwen2_vl:Qwen2VLFamily",
    "qwen2_5_vl": "llava.model.families.qwen2_5_vl:Qwen25VLFamily",
}

_GENERIC = "llava.model.generic"  # imported when first asked for, as the others


class ImageInputs(NamedTuple):
    """What the images of one sample become.

    Attributes:
        pixels: the model's pixel arguments.
        runs: for each image the token ids int32[k] that stand in its placeholder's stead.
    """

    pixels: dict[str, torch.Tensor]
    runs: list[NDArray[np.int32]]


class Processor(ABC):
    """Tokenizer and image arithmetic of one checkpoint. Picklable: DataLoader workers hold a copy."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    image_text: str  # what one "<image>" of the data becomes in the prompt: exactly one placeholder token in it
    image_token_id: int  # that placeholder's id; num_image_tokens tokens take its place, mostly itself repeated
    needs_padding_mask: bool = True  # False: attention is causal, so that no token sees padding to its right
    default_template: str  # name in llava.conversation.conv_templates, or "chat" for the tokenizer's own
    in_parts = False
    """Whether the chat template takes a turn as a list of texts and images, and writes ``image_part`` for an image."""
    image_part = ""
    end_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer by the model's own generation settings."""

    @abstractmethod
    def num_image_tokens(self, height: int, width: int, images: int = 1) -> int:
        """Tokens that an image of ``height`` × ``width`` pixels takes in a sample of ``images``. Reads no pixels."""

    @property
    def unwritten_ids(self) -> tuple[int, ...]:
        """Tokens that stand for an image, and are never part of an answer."""
        return (self.image_token_id,)

    def limit_pixels(self, least: int | None, most: int | None) -> None:
        """Bounds on an image's pixels, None to leave one as it is; ValueError where the model has no such bounds."""
        if (least, most) != (None, None):
            raise ValueError("this model takes every image at one size")

    def fit_images(self, tokens: int) -> int | None:
        """Bound images to so many tokens where they could take more; returns the new bound in pixels, None if none."""
        return None

    @abstractmethod
    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """The model's pixel arguments for ``images`` in order; the first axis may be concatenated over samples."""

    def image_inputs(self, images: Sequence[Image.Image]) -> ImageInputs:
        """Pixels and tokens of one sample's images in order."""
        counts = [self.num_image_tokens(image.height, image.width, len(images)) for image in images]
        runs = [np.full(count, self.image_token_id, dtype=np.int32) for count in counts]
        return ImageInputs(self.pixel_inputs(images), runs)

    def join_pixels(self, samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The pixel arguments of several samples as one batch's; a sample without images has none."""
        names = dict.fromkeys(name for sample in samples for name in sample)
        return {name: torch.cat([sample[name] for sample in samples if name in sample]) for name in names}

    @abstractmethod
    def blank_image(self) -> Image.Image:
        """The smallest image the family takes, for micro-batches of text alone."""

    def row_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Further per-token arguments of an unpacked batch, ``input_ids: int64[B, S]``."""
        return {}

    def position_ids(self, input_ids: torch.Tensor, grids: torch.Tensor | None = None) -> torch.Tensor:
        """``int64[R, S]`` positions of ONE sample, ``input_ids: int64[S]``. Packing lays these end to end.

        ``grids``: its ``image_grid_thw``, where the model has them.
        """
        return torch.arange(input_ids.shape[0], device=input_ids.device).unsqueeze(0)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer, image processor and the conversation template's name."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        if hasattr(self.tokenizer, "legacy"):
            # transformers does not write this flag back, and a reloaded tokenizer would split text differently
            self.tokenizer.init_kwargs["legacy"] = self.tokenizer.legacy
        self._save_parts(folder)
        update_json(Path(folder) / PROCESSOR_CONFIG, {TEMPLATE_KEY: self.default_template})

    def _save_parts(self, folder: str | os.PathLike[str]) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


class Family(ABC):
    """How one architecture is loaded, and the paths of its parts in the (non-PEFT) model, modules or parameters."""

    name: str
    model_type: str
    model_class: type[PreTrainedModel]
    default_template: str
    vision_modules: tuple[str, ...]
    projector_modules: tuple[str, ...]
    language_modules: tuple[str, ...]

    def load_model(
        self,
        path: str | os.PathLike[str],
        dtype: torch.dtype | str = "auto",
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> PreTrainedModel:
        """The model saved at ``path``; further arguments go to ``from_pretrained``.

        Raises ValueError where weights are missing or of another shape.
        """
        with self.loading(path) as own:
            return load_whole(
                self.model_class,
                path,
                dtype=dtype,
                attn_implementation=attn_implementation,
                quantization_config=quantization_config,
                **own,
                **kwargs,
            )

    @contextlib.contextmanager
    def loading(self, path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
        """Surrounds ``load_model``, for a family that needs more than its class; gives further arguments for it."""
        yield {}

    @abstractmethod
    def load_processor(self, path: str | os.PathLike[str]) -> Processor:
        """The processor saved at ``path``."""

    def why_not_packed(self, processor: Processor) -> str | None:
        """Why samples of this model cannot be packed; None where they can."""
        return None

    def real_vocab_size(self, config: PretrainedConfig) -> int | None:
        """Rows of the vocabulary that may be predicted, the first ones; None when all of them may."""
        return None

    def unused_vision_modules(self, model: nn.Module) -> list[nn.Module]:
        """Modules of the tower that no loss depends on. They must not learn: DDP waits for their gradients."""
        return []

    def find_parameters(self, model: nn.Module, kind: str) -> list[nn.Parameter]:
        """The parameters of a part, ``kind`` one of "vision", "projector", "language"."""
        prefixes: tuple[str, ...] = getattr(self, f"{kind}_modules")
        return [
            parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if name in prefixes or name.startswith(tuple(f"{prefix}." for prefix in prefixes))
        ]


def get_family(name: str) -> Family:
    """The family that has a file of its own under ``name`` (= ``config.model_type``)."""
    if name not in _FAMILIES:
        raise ValueError(f"model family {name!r} has no file of its own; those that do: {', '.join(sorted(_FAMILIES))}")
    module, cls = _FAMILIES[name].split(":")
    return getattr(importlib.import_module(module), cls)()


def family_of(path_or_config: str | os.PathLike[str] | PretrainedConfig) -> Family:
    """The family of a checkpoint folder or of a configuration, by its ``model_type``.

    Raises ValueError for a model that is none of transformers' image-text models.
    """
    if not isinstance(path_or_config, PretrainedConfig):
        try:
            return family_of(AutoConfig.from_pretrained(path_or_config))
        except ValueError as error:
            raise ValueError(f"{path_or_config}: {error}") from error
    if path_or_config.model_type in _FAMILIES:
        return get_family(path_or_config.model_type)
    return importlib.import_module(_GENERIC).GenericFamily(path_or_config)


def layers_behind(tower: nn.Module, selected: int | Sequence[int]) -> list[nn.Module]:
    """The tower's layers behind the last of those whose features are read, and the norm behind them all."""
    named = dict(tower.named_modules())
    layers: Any = next((module for name, module in named.items() if name.endswith("encoder.layers")), None)
    if layers is None:
        return []
    read = [selected] if isinstance(selected, int) else selected
    used = max(layer if layer >= 0 else len(layers) + 1 + layer for layer in read)
    return [*layers[used:], *(module for name, module in named.items() if name.endswith("post_layernorm"))]


def saved_template(path: str | os.PathLike[str], default: str) -> str:
    """The conversation template's name kept with a checkpoint, or ``default``."""
    file = Path(path) / PROCESSOR_CONFIG
    return json.loads(file.read_text()).get(TEMPLATE_KEY, default) if file.exists() else default


def update_json(file: Path, values: dict[str, Any]) -> None:
    """Set ``values`` in the JSON object in ``file`` (made if absent), whole or not at all."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content.update(values)
    write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
