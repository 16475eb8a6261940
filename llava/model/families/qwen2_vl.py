"""Qwen2-VL: images at their own resolution, rotary positions in three axes.

transformers' combined processor for Qwen wants torchvision (for video); the PIL image processor and the tokenizer do
all that images need.

Legend: n images, P patches before merging, S tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from llava.model.family import Family, Processor, saved_template
from llava.model.grids import fit_images, grid_positions, limit_pixels
from llava.model.tokenizer import load_tokenizer

IMAGE_PAD = "<|image_pad|>"


class QwenProcessor(Processor):
    """An image takes as many tokens as its resized pixels have merged patches."""

    image_text = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
    needs_padding_mask = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Qwen2VLImageProcessorPil,
        default_template: str = "chat",
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.default_template = default_template
        image_token_id: Any = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        self.image_token_id = image_token_id
        self.merge_size: int = image_processor.merge_size

    def num_image_tokens(self, height: int, width: int, images: int = 1) -> int:
        return self.image_processor.get_number_of_image_patches(height, width) // self.merge_size**2

    def limit_pixels(self, least: int | None, most: int | None) -> None:
        limit_pixels(self.image_processor, least, most)

    def fit_images(self, tokens: int) -> int | None:
        return fit_images(self.image_processor, tokens)

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """``pixel_values: float32[sum of P, C·T·p·p]`` and ``image_grid_thw: int64[n, 3]`` (patches)."""
        return dict(self.image_processor(list(images), return_tensors="pt"))

    def blank_image(self) -> Image.Image:
        side = self.image_processor.patch_size * self.merge_size
        return Image.new("RGB", (side, side))

    def row_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """``mm_token_type_ids: int32[B, S]``, 1 on image tokens: the model lays its rotary grid by them."""
        return {"mm_token_type_ids": (input_ids == self.image_token_id).int()}

    def position_ids(self, input_ids: torch.Tensor, grids: torch.Tensor | None = None) -> torch.Tensor:
        """``int64[4, S]``, see `grid_positions`; ``grids`` are the ``image_grid_thw`` of the sample's images."""
        return grid_positions(input_ids, self.image_token_id, grids, self.merge_size)


class Qwen2VLFamily(Family):
    """Qwen2-VL in transformers' layout."""

    name = "qwen2_vl"
    model_type = "qwen2_vl"
    default_template = "chat"
    model_class: type[PreTrainedModel] = Qwen2VLForConditionalGeneration
    # the merger is Qwen's projector; it lies inside the tower, so freezing the tower is done before freeing the merger
    vision_modules = ("model.visual",)
    projector_modules = ("model.visual.merger",)
    language_modules = ("model.language_model", "lm_head")

    def load_processor(self, path: str | os.PathLike[str]) -> QwenProcessor:
        tokenizer = load_tokenizer(path)
        tokenizer.padding_side = "right"
        old_place = Path(path) / "chat_template.json"  # where some published folders keep it
        if tokenizer.chat_template is None and old_place.exists():
            tokenizer.chat_template = json.loads(old_place.read_text())["chat_template"]
        images = Qwen2VLImageProcessorPil.from_pretrained(path)
        return QwenProcessor(tokenizer, images, saved_template(path, self.default_template))
