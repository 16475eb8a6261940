"""The processor of any image-text model of transformers, by what its own processor does and nothing else.

What is not said anywhere is learned when the processor is made, from a few small images that are put through it: which
arguments of the model it gives, how those of several samples are joined, which text an image becomes, and whether its
own arithmetic (made for serving engines) tells how many tokens that is. What cannot be learned is refused by name.

Legend: n images, S tokens, B rows, H W pixels.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, GenerationConfig, PretrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import GENERATION_CONFIG_NAME

from llava.conversation import CHAT_TEMPLATE
from llava.model.family import PROCESSOR_CONFIG, ImageInputs, Processor, update_json
from llava.model.grids import fit_images, grid_positions, has_pixel_bounds, limit_pixels
from llava.model.tokenizer import load_tokenizer
from llava.model.upstream import image_only, image_token_counts, processor_class

_SIZES = ((40, 60), (300, 200), (90, 420))
"""Height and width of the images that are tried: a small one, and two that most models cut or scale differently."""
_BLANK_SIDES = (28, 32, 56, 112, 224, 336, 448)
_TEXT_KEYS = ("input_ids", "attention_mask", "text_replacement_offsets")
_ROW_KEYS = ("token_type_ids", "mm_token_type_ids")
_VIDEO_FILES = ("video_preprocessor_config.json",)


class GenericProcessor(Processor):
    """Text and image arithmetic by a processor of transformers.

    Args:
        stock: transformers' processor, with a chat template.
        config: of the model.
        folder: where it was loaded from; what it holds for video is kept when it is saved.

    Raises ValueError, which names the processor's class, for one whose doing cannot be learned.
    """

    default_template = CHAT_TEMPLATE
    in_parts = True

    def __init__(
        self, stock: ProcessorMixin, config: PretrainedConfig, folder: Path, end_token_ids: Sequence[int] = ()
    ) -> None:
        self.stock, self._folder = stock, folder
        self.tokenizer, self.image_processor = stock.tokenizer, stock.image_processor
        self.end_token_ids = tuple(end_token_ids)
        text: Any = config.get_text_config()
        rope = getattr(text, "rope_parameters", None) or {}
        self.has_axes = any("mrope_section" in part for part in (rope, *rope.values()) if isinstance(part, dict))
        self.image_part = str(self._needed("image_token", "has no image token"))
        token: Any = self.tokenizer.convert_tokens_to_ids(self.image_part)
        self.image_token_id = int(token)
        self.__setstate__({})
        self._learn()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled behind the name of its processor's class, which a new process may have to find first."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("_ids_of", "_measured")}
        return _unpickled, (type(self.stock).__name__, pickle.dumps(state))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Texts and sizes of images come again and again.
        self._ids_of = lru_cache(maxsize=4096)(self._tokenised)
        self._measured = lru_cache(maxsize=65536)(self._measure)

    @property
    def unwritten_ids(self) -> tuple[int, ...]:
        others = [token for token in getattr(self.stock, "image_token_ids", ()) if token is not None]
        return tuple(dict.fromkeys([self.image_token_id, *others]))

    def num_image_tokens(self, height: int, width: int, images: int = 1) -> int:
        if self._surplus is None or (images > 1 and not self._alike):
            return self._measured(height, width, images)
        counts = image_token_counts(self.stock, [(height, width)])
        assert counts is not None
        return counts[0] + self._surplus

    def limit_pixels(self, least: int | None, most: int | None) -> None:
        if (least, most) == (None, None):
            return
        if not has_pixel_bounds(self.image_processor):
            raise ValueError(f"{type(self.image_processor).__name__} has no bounds on an image's pixels")
        limit_pixels(self.image_processor, least, most)

    def fit_images(self, tokens: int) -> int | None:
        return fit_images(self.image_processor, tokens) if has_pixel_bounds(self.image_processor) else None

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return self.image_inputs(images).pixels

    def image_inputs(self, images: Sequence[Image.Image]) -> ImageInputs:
        output = self._run([images])
        texts = [part["replacement"] for part in output["text_replacement_offsets"][0]]
        return ImageInputs(self._pixels_of(output), [self._ids_of(text) for text in texts])

    def join_pixels(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """End to end along the first axis; where the others differ, filled up behind as the model's processor does."""
        names = dict.fromkeys(name for sample in samples for name in sample)
        return {
            name: _joined([sample[name] for sample in samples if name in sample], self._fillers.get(name, 0))
            for name in names
        }

    def blank_image(self) -> Image.Image:
        for side in _BLANK_SIDES:
            image = Image.new("RGB", (side, side))
            try:
                self.pixel_inputs([image])
            except (ValueError, RuntimeError, ZeroDivisionError):
                continue
            return image
        raise self._refused("takes no small image")

    def row_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """``token_type_ids`` or ``mm_token_type_ids: int64[B, S]`` where the model takes them."""
        if not self._row_keys:
            return {}
        types = self.stock.create_mm_token_type_ids(input_ids.tolist())
        return dict.fromkeys(self._row_keys, torch.tensor(types))

    def position_ids(self, input_ids: Tensor, grids: Tensor | None = None) -> Tensor:
        if not self.has_axes:
            return super().position_ids(input_ids, grids)
        return grid_positions(input_ids, self.image_token_id, grids, self.image_processor.merge_size)

    def _save_parts(self, folder: str | os.PathLike[str]) -> None:
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)  # where older readers look for it
        stored = self._folder / PROCESSOR_CONFIG
        if stored.is_file() and stored.resolve() != (folder / PROCESSOR_CONFIG).resolve():
            shutil.copyfile(stored, folder / PROCESSOR_CONFIG)
        for name in _VIDEO_FILES:
            if (self._folder / name).is_file() and self._folder.resolve() != folder.resolve():
                shutil.copyfile(self._folder / name, folder / name)
        values = {"processor_class": type(self.stock).__name__, "image_processor": self.image_processor.to_dict()}
        update_json(folder / PROCESSOR_CONFIG, values)

    # ---- what is learned

    def _learn(self) -> None:
        first, *others = (self._run([[_picture(*size)]]) for size in _SIZES)
        outputs = [first, *others]
        if any("text_replacement_offsets" not in output for output in outputs):
            raise self._refused("does not say what an image becomes in the text")
        texts = [output["text_replacement_offsets"][0][0]["replacement"] for output in outputs]
        self._marks = re.compile("|".join(re.escape(token) for token in self._special_tokens()))
        self._lead, self._trail = self._ordinary_ends(texts[0])
        self.image_text = self._lead + self.image_part + self._trail
        self._row_keys = tuple(name for name in _ROW_KEYS if name in first)
        self.has_grids = "image_grid_thw" in first and hasattr(self.image_processor, "merge_size")
        self._check_rows(first)
        self._fillers: dict[str, Any] = {}
        for sizes in pairwise(_SIZES):
            self._learn_joining(sizes)
        self._learn_counts([len(self._ids_of(text)) for text in texts])

    def _learn_counts(self, lengths: Sequence[int]) -> None:
        """See whether the processor's arithmetic may be used, and whether images of one sample leave each other be."""
        counts = image_token_counts(self.stock, _SIZES)
        surplus = {length - count for length, count in zip(lengths, counts or [], strict=False)}
        self._surplus = surplus.pop() if len(surplus) == 1 else None
        together = self.image_inputs([_picture(*size) for size in _SIZES]).runs
        self._alike = [len(run) for run in together] == list(lengths)

    def _learn_joining(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Find what fills up the shorter of two samples, and hold `join_pixels` against the processor's own joining."""
        pictures = [_picture(*size) for size in sizes]
        alone = [self._pixels_of(self._run([[picture]])) for picture in pictures]
        together = self._pixels_of(self._run([[picture] for picture in pictures]))
        for name, whole in together.items():
            if filler := _filler([one[name] for one in alone], whole):
                self._fillers[name] = filler
        ours = self.join_pixels(alone)
        if set(ours) != set(together) or not all(torch.equal(ours[name], together[name]) for name in ours):
            raise self._refused("joins the images of several samples in a way that is not known here")

    def _check_rows(self, output: Any) -> None:
        rows = self.row_inputs(output["input_ids"])
        if not all(torch.equal(rows[name], output[name].to(rows[name])) for name in self._row_keys):
            raise self._refused(f"gives {', '.join(self._row_keys)} in a way that is not known here")

    def _measure(self, height: int, width: int, images: int) -> int:
        """Tokens of an image by putting a blank one through the processor."""
        return len(self.image_inputs([Image.new("RGB", (width, height))] * images).runs[0])

    # ---- the stock processor

    def _run(self, samples: Sequence[Sequence[Image.Image]]) -> Any:
        """The stock processor's output for samples of images alone."""
        texts = [self.image_part * len(images) for images in samples]
        return self.stock(
            images=[list(images) for images in samples],
            text=texts,
            return_tensors="pt",
            padding=True,
            return_text_replacement_offsets=True,
        )

    def _pixels_of(self, output: Any) -> dict[str, Tensor]:
        return {name: value for name, value in output.items() if name not in (*_TEXT_KEYS, *_ROW_KEYS)}

    def _tokenised(self, replacement: str) -> NDArray[np.int32]:
        """The ids of an image's text without the ordinary text at its ends, which belongs to what stands beside it."""
        lead, trail = self._ordinary_ends(replacement)
        if (lead, trail) != (self._lead, self._trail):
            raise self._refused(f"writes an image once between {(self._lead, self._trail)}, once {(lead, trail)}")
        middle = replacement[len(lead) : len(replacement) - len(trail)]
        ids = np.asarray(self.tokenizer(middle, add_special_tokens=False, verbose=False).input_ids, dtype=np.int32)
        ids.setflags(write=False)
        return ids

    def _ordinary_ends(self, text: str) -> tuple[str, str]:
        """What stands before the first and behind the last token of `text` that is no ordinary text."""
        marks = list(self._marks.finditer(text))
        if not marks:
            raise self._refused("writes an image as ordinary text")
        return text[: marks[0].start()], text[marks[-1].end() :]

    def _special_tokens(self) -> list[str]:
        tokens = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        if self.image_part not in tokens:
            raise self._refused(f"writes {self.image_part!r} for an image, which is no token of the tokenizer")
        return sorted(tokens, key=len, reverse=True)

    def _needed(self, name: str, fault: str) -> Any:
        value = getattr(self.stock, name, None)
        if value is None:
            raise self._refused(fault)
        return value

    def _refused(self, fault: str) -> ValueError:
        return ValueError(
            f"{type(self.stock).__name__} {fault}: this model needs a family of its own (docs/extending.md)"
        )


def load_generic(path: str | os.PathLike[str], config: PretrainedConfig) -> GenericProcessor:
    """The processor saved at `path`, for images and text. Images are processed with Pillow where the model offers it.

    Raises ValueError for a model without processor or chat template, and where a library is missing for it.
    """
    folder = Path(path)
    name = _stored_class(folder) or PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise ValueError(f"transformers has no processor for {config.model_type}")
    try:
        kind = processor_class(name)
        images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except ImportError as error:
        raise _missing(error) from error
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "right"
    stored, _ = kind.get_processor_dict(folder)
    if not tokenizer.chat_template:
        tokenizer.chat_template = stored.get("chat_template")
    if not tokenizer.chat_template:
        raise ValueError(f"{folder} has no chat template; put the model's chat_template.jinja there")
    attributes = kind.get_attributes()
    known = set(inspect.signature(kind.__init__).parameters) - {*attributes, "chat_template"}
    parts: dict[str, Any] = dict.fromkeys(attributes) | {"image_processor": images, "tokenizer": tokenizer}
    settings = {name: stored[name] for name in known & stored.keys()}
    try:
        stock = image_only(kind, parts, settings | {"chat_template": tokenizer.chat_template})
    except ImportError as error:
        raise _missing(error) from error
    return GenericProcessor(stock, config, folder, _end_tokens(folder, config))


def _unpickled(stock: str, state: bytes) -> GenericProcessor:
    processor_class(stock)
    found = GenericProcessor.__new__(GenericProcessor)
    found.__setstate__(pickle.loads(state))
    return found


def _missing(error: ImportError) -> ValueError:
    """A library that transformers asks for, in its own words up to where it tells how to install it."""
    return ValueError(str(error).strip().partition(". ")[0])


def _stored_class(folder: Path) -> str | None:
    file = folder / PROCESSOR_CONFIG
    return json.loads(file.read_text()).get("processor_class") if file.is_file() else None


def _end_tokens(folder: Path, config: PretrainedConfig) -> list[int]:
    """The tokens that end an answer by the checkpoint's generation settings, else by its configuration."""
    held = getattr(config.get_text_config(), "eos_token_id", None)
    if (folder / GENERATION_CONFIG_NAME).is_file():
        held = GenerationConfig.from_pretrained(folder).eos_token_id or held
    return [held] if isinstance(held, int) else list(held or ())


def _picture(height: int, width: int) -> Image.Image:
    """An image in which every pixel is of another colour than those beside it, so that joining faults show."""
    pixels = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3) * 2654435761 >> 24
    return Image.fromarray(pixels.astype(np.uint8))


def _joined(tensors: Sequence[Tensor], filler: Any) -> Tensor:
    shapes = [tensor.shape[1:] for tensor in tensors]
    if len(set(shapes)) == 1:
        return torch.cat(list(tensors))
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    whole = tensors[0].new_full((sum(map(len, tensors)), *largest), filler)
    at = 0
    for tensor in tensors:
        whole[(slice(at, at + len(tensor)), *(slice(size) for size in tensor.shape[1:]))] = tensor
        at += len(tensor)
    return whole


def _filler(alone: Sequence[Tensor], whole: Tensor) -> Any:
    """What stands in `whole`, the joint arguments of samples, where one of them alone is shorter; 0 if none is."""
    at = 0
    for tensor in alone:
        own = whole[at : at + len(tensor)]
        if own.dim() == tensor.dim() and own.shape != tensor.shape:
            outside = torch.ones_like(own, dtype=torch.bool)
            outside[(slice(None), *(slice(size) for size in tensor.shape[1:]))] = False
            return own[outside][0].item() if outside.any() else 0
        at += len(tensor)
    return 0
