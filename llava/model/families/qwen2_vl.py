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
from llava.model.tokenizer import load_tokenizer

IMAGE_PAD = "<|image_pad|>"


class QwenProcessor(Processor):
    """An image takes as many tokens as its resized pixels have merged patches."""

    image_text = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"

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

    def num_image_tokens(self, height: int, width: int) -> int:
        return self.image_processor.get_number_of_image_patches(height, width) // self.merge_size**2

    def limit_pixels(self, least: int | None, most: int | None) -> None:
        size = dict(self.image_processor.size)
        size |= {name: value for name, value in (("shortest_edge", least), ("longest_edge", most)) if value is not None}
        if not 0 < size["shortest_edge"] <= size["longest_edge"]:
            raise ValueError(f"images of at least {size['shortest_edge']} and at most {size['longest_edge']} pixels")
        self.image_processor.size = size

    def fit_images(self, tokens: int) -> int | None:
        area = (self.image_processor.patch_size * self.merge_size) ** 2
        if self.image_processor.size["longest_edge"] <= tokens * area:
            return None
        self.limit_pixels(None, max(tokens * area, self.image_processor.size["shortest_edge"]))
        return int(self.image_processor.size["longest_edge"])

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
        """``int64[4, S]``: place in the sample, then rotary time, height and width.

        ``grids: int64[n, 3]`` are the ``image_grid_thw`` of the sample's images in order. Text advances all three
        rotary rows by one a token; an image lies on a grid that starts where the text stands and advances it by its
        longer side. Raises ValueError if the image tokens are not the grids' number.
        """
        rows = torch.empty(4, input_ids.shape[0], dtype=torch.int64, device=input_ids.device)
        rows[0] = torch.arange(input_ids.shape[0], device=input_ids.device)
        image_places = (input_ids == self.image_token_id).nonzero().flatten().tolist()
        done, position, seen = 0, 0, 0
        sizes = [] if grids is None else grids.tolist()
        for time, height, width in sizes:
            merged = time, height // self.merge_size, width // self.merge_size
            count = merged[0] * merged[1] * merged[2]
            if seen + count > len(image_places):
                raise ValueError(f"{len(image_places)} image tokens, but the grids {sizes} need more")
            start = image_places[seen]
            rows[1:, done:start] = position + torch.arange(start - done, device=input_ids.device)
            position += start - done
            axes = [torch.arange(size, device=input_ids.device) for size in merged]
            rows[1:, start : start + count] = position + torch.cartesian_prod(*axes).reshape(count, 3).T
            position += max(merged[1:])
            done, seen = start + count, seen + count
        if seen != len(image_places):
            raise ValueError(f"{len(image_places)} image tokens, but the grids account for {seen}")
        rows[1:, done:] = position + torch.arange(input_ids.shape[0] - done, device=input_ids.device)
        return rows


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
