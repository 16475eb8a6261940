"""The registry of model families, and what data and inference need to know of one.

Legend: n images, H W pixels, S tokens, R position rows.

A family is one file in ``llava/model/families`` and one line in ``_FAMILIES``. It is found by ``config.model_type``,
never by a folder's name.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
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


class Processor(ABC):
    """Tokenizer and image arithmetic of one checkpoint. Picklable: DataLoader workers hold a copy."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    image_text: str  # what one "<image>" of the data becomes in the prompt: exactly one placeholder token in it
    image_token_id: int  # that placeholder's id; repeated num_image_tokens times
    default_template: str  # name in llava.conversation.conv_templates, or "chat" for the tokenizer's own

    @abstractmethod
    def num_image_tokens(self, height: int, width: int) -> int:
        """Placeholders that an image of ``height`` × ``width`` pixels takes. Reads no pixels."""

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

    @abstractmethod
    def blank_image(self) -> Image.Image:
        """The smallest image the family takes, for micro-batches of text alone."""

    def row_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Further per-token arguments of an unpacked batch, ``input_ids: int64[B, S]``."""
        return {}

    def position_ids(self, input_ids: torch.Tensor, grids: torch.Tensor | None = None) -> torch.Tensor:
        """``int64[R, S]`` positions of ONE sample, ``input_ids: int64[S]``. Packing lays these end to end."""
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
    """How one architecture is loaded, and the module path prefixes of its parts in the (non-PEFT) model."""

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

    def real_vocab_size(self, config: PretrainedConfig) -> int | None:
        """Rows of the vocabulary that may be predicted, the first ones; None when all of them may."""
        return None

    def unused_vision_modules(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Modules of the tower that no loss depends on. They must not learn: DDP waits for their gradients."""
        return []

    def find_modules(self, model: torch.nn.Module, kind: str) -> list[torch.nn.Module]:
        """The modules of a part, ``kind`` one of "vision", "projector", "language"."""
        prefixes: tuple[str, ...] = getattr(self, f"{kind}_modules")
        return [model.get_submodule(prefix) for prefix in prefixes]


def get_family(name: str) -> Family:
    """The family registered as ``name`` (= ``config.model_type``)."""
    if name not in _FAMILIES:
        raise ValueError(f"unknown model family {name!r}; known: {', '.join(sorted(_FAMILIES))}")
    module, cls = _FAMILIES[name].split(":")
    return getattr(importlib.import_module(module), cls)()


def family_of(path_or_config: str | os.PathLike[str] | PretrainedConfig) -> Family:
    """The family of a checkpoint folder or of a configuration, by its ``model_type``."""
    if isinstance(path_or_config, PretrainedConfig):
        return get_family(path_or_config.model_type)
    try:
        return get_family(AutoConfig.from_pretrained(path_or_config).model_type)
    except ValueError as error:
        raise ValueError(f"{path_or_config}: {error}") from error


def saved_template(path: str | os.PathLike[str], default: str) -> str:
    """The conversation template's name kept with a checkpoint, or ``default``."""
    file = Path(path) / PROCESSOR_CONFIG
    return json.loads(file.read_text()).get(TEMPLATE_KEY, default) if file.exists() else default


def update_json(file: Path, values: dict[str, Any]) -> None:
    """Set ``values`` in the JSON object in ``file`` (made if absent), whole or not at all."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content.update(values)
    write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
