"""LLaVA-1.5: CLIP tower, projector, Llama; transformers' ``LlavaForConditionalGeneration``."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers import LlavaProcessor as StockLlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava.data.images import MAX_PIXELS
from llava.model.family import Family, Processor, layers_behind, saved_template
from llava.model.pixels import SquarePixels
from llava.model.projector import projector_for, vision_of
from llava.model.tokenizer import SENTENCEPIECE_FILE, load_tokenizer, sentencepiece_file

IMAGE_TOKEN = "<image>"


def square_image_processor(image_size: int, pad: bool = True, **kwargs: Any) -> LlavaImageProcessorPil:
    """LLaVA-1.5's image preprocessing: pad to a square with the mean colour, resize, crop, normalise.

    ``pad=False`` is LLaVA's ``--image_aspect_ratio square``: resize the shorter side, crop the middle.
    """
    return LlavaImageProcessorPil(
        do_pad=pad,
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        **kwargs,
    )


class LlavaSquareProcessor(Processor):
    """Every image becomes one square, so every image takes the same number of tokens."""

    image_text = IMAGE_TOKEN
    needs_padding_mask = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: LlavaImageProcessorPil,
        config: LlavaConfig,
        default_template: str = "v1",
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self._pixels = SquarePixels(image_processor)
        self.default_template = default_template
        self.image_token_id = config.image_token_index
        self.patch_size: int = vision_of(config).patch_size
        self.image_size: int = vision_of(config).image_size
        self.feature_strategy: str = config.vision_feature_select_strategy

    def num_image_tokens(self, height: int, width: int, images: int = 1) -> int:
        """The same for all images; ValueError for one that would be huge on its way to the square."""
        longer, shorter = max(height, width), min(height, width)
        pads = getattr(self.image_processor, "do_pad", True)
        pixels = longer**2 if pads else self.image_size**2 * longer // shorter
        if pixels > MAX_PIXELS:
            how = "padded to a square" if pads else "resized before its middle is cut out"
            raise ValueError(f"{how} it has {pixels:,} pixels, more than {MAX_PIXELS:,}")
        patches = (self.image_size // self.patch_size) ** 2
        return patches + (self.feature_strategy == "full")

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """``pixel_values: float32[n, 3, image_size, image_size]``."""
        if self._pixels.stock is not self.image_processor:
            self._pixels = SquarePixels(self.image_processor)
        return {"pixel_values": self._pixels(images)}

    def blank_image(self) -> Image.Image:
        return Image.new("RGB", (self.image_size, self.image_size))

    def _save_parts(self, folder: str | os.PathLike[str]) -> None:
        StockLlavaProcessor(
            image_processor=self.image_processor,
            tokenizer=self.tokenizer,
            patch_size=self.patch_size,
            vision_feature_select_strategy=self.feature_strategy,
            num_additional_image_tokens=1,  # CLIP's class token
        ).save_pretrained(folder)
        self.image_processor.save_pretrained(folder)  # where older readers look for it
        held = sentencepiece_file(folder, self.tokenizer)
        target = Path(folder) / SENTENCEPIECE_FILE
        if held is not None and held != target:
            shutil.copyfile(held, target)  # original LLaVA's code reads no other form


class LlavaFamily(Family):
    """LLaVA models in transformers' layout, with any of LLaVA's projector types."""

    name = "llava"
    model_type = "llava"
    model_class = LlavaForConditionalGeneration
    default_template = "v1"
    vision_modules = ("model.vision_tower",)
    projector_modules = ("model.multi_modal_projector",)
    language_modules = ("model.language_model", "lm_head")

    @contextlib.contextmanager
    def loading(self, path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
        config = LlavaConfig.from_pretrained(path)
        with projector_for(config):
            yield {"config": config}

    def unused_vision_modules(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The layers behind the one whose features are read, and the norm behind the last."""
        return layers_behind(model.get_submodule(self.vision_modules[0]), cast(Any, model).config.vision_feature_layer)

    def load_processor(self, path: str | os.PathLike[str]) -> LlavaSquareProcessor:
        config = LlavaConfig.from_pretrained(path)
        stored, _ = LlavaImageProcessorPil.get_image_processor_dict(path)
        stored.setdefault("do_pad", True)  # LLaVA-1.5 was trained so; early converted checkpoints do not say it
        tokenizer = load_tokenizer(path)
        tokenizer.padding_side = "right"
        return LlavaSquareProcessor(
            tokenizer,
            LlavaImageProcessorPil.from_dict(stored),
            config,
            saved_template(path, self.default_template),
        )

    def real_vocab_size(self, config: PretrainedConfig) -> int | None:
        """``<image>`` is the first added row; it, ``<pad>`` and the padding rows after them are never predicted."""
        return config.image_token_index
