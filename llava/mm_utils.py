"""Helpers that scripts written for LLaVA import: images and prompts for a single request."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """The image in a base64 string."""
    return Image.open(BytesIO(base64.b64decode(image)))


def expand2square(image: Image.Image, background_color: tuple[int, ...] | int) -> Image.Image:
    """`image` in the middle of the smallest square that holds it."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background_color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(images: Sequence[Image.Image], image_processor: Any, model_cfg: Any) -> Tensor | list[Tensor]:
    """Pixels float[n, 3, H, W] of `images`, padded to squares if `model_cfg.image_aspect_ratio` is "pad".

    A list of float[3, H, W] when the images come out in different sizes.
    """
    aspect = getattr(model_cfg, "image_aspect_ratio", None)
    if aspect == "anyres":
        raise ValueError("image_aspect_ratio 'anyres' belongs to LLaVA-1.6; this model takes 'pad' or none")
    if aspect == "pad":
        colour = tuple(int(mean * 255) for mean in image_processor.image_mean)
        images = [expand2square(image, colour) for image in images]
    pixels = [image_processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
    if all(one.shape == pixels[0].shape for one in pixels):
        return torch.stack(pixels)
    return pixels


def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase | Callable[[str], Any],
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | Tensor:
    """Ids of `prompt` with `image_token_index` for each `<image>`; the text between images is tokenised by itself."""
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be None or 'pt', not {return_tensors!r}")
    bos = getattr(tokenizer, "bos_token_id", None)
    ids: list[int] = []
    for position, text in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN)):
        tokens = list(tokenizer(text).input_ids)
        begins = bool(tokens) and tokens[0] == bos
        if position:
            ids.append(image_token_index)
        ids.extend(tokens[1:] if position and begins else tokens)
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


def get_model_name_from_path(model_path: str) -> str:
    """The name a checkpoint goes by: its folder, with the run's name before it for `checkpoint-*`."""
    parts = model_path.strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Ends each row's generation once its new text holds one of `keywords`."""

    def __init__(self, keywords: Sequence[str], tokenizer: PreTrainedTokenizerBase, input_ids: Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.start_len = input_ids.shape[1]
        self.keyword_ids = [self._ids(keyword) for keyword in self.keywords]
        self.max_keyword_len = max((len(ids) for ids in self.keyword_ids), default=0)

    def _ids(self, keyword: str) -> list[int]:
        ids = self.tokenizer(keyword).input_ids
        return list(ids[1:] if len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id else ids)

    def __call__(self, output_ids: Tensor, scores: Tensor | None = None, **kwargs: Any) -> Tensor:
        """`output_ids` int64[B, S], prompt included; returns bool[B]."""
        return torch.tensor([self._is_done(row) for row in output_ids], dtype=torch.bool, device=output_ids.device)

    def _is_done(self, row: Tensor) -> bool:
        # Some models return the new tokens alone; then there is no prompt to leave out.
        new = row[self.start_len :] if len(row) > self.start_len else row
        tokens = new.tolist()
        if any(ids and tokens[-len(ids) :] == ids for ids in self.keyword_ids):
            return True
        # A keyword may be tokenised otherwise where it meets other text. A few more tokens than it has leave room.
        tail = self.tokenizer.decode(tokens[-(self.max_keyword_len + 3) :], skip_special_tokens=True)
        return any(keyword in tail for keyword in self.keywords)
