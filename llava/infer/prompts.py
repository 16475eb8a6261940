"""From a request to the model's inputs.

Legend: B rows, S tokens with every image's placeholder repeated, s tokens with one placeholder an image, n images.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.data.collator import Collator
from llava.data.errors import BadSampleError
from llava.data.images import ImageFolder, to_rgb, upright_size
from llava.data.template import Messages, TemplateEncoder
from llava.data.tokens import expand_images, expanded_length, place_images
from llava.model.family import ImageInputs, Processor

ImageSource = str | os.PathLike[str] | Image.Image
"""A file, or an opened image."""


@dataclass(frozen=True)
class Request:
    """A conversation that ends with the human's turn, and its images, one per `<image>` in the turns, in order.

    `verbatim`: its turns are put as they stand, not with the image in front and without white space at the ends.
    """

    id: Hashable
    messages: Messages
    images: Sequence[ImageSource] = ()
    verbatim: bool = False


@dataclass(frozen=True)
class Prompt:
    """A request as tokens, `input_ids: int32[s]`; `image_tokens` are the placeholders that each image will take.

    `labels: int32[s]` is there for a prompt that its answer follows: the answer's tokens, IGNORE_INDEX elsewhere.
    """

    id: Hashable
    input_ids: NDArray[np.int32]
    images: Sequence[ImageSource]
    image_tokens: Sequence[int]
    labels: NDArray[np.int32] | None = None

    @property
    def length(self) -> int:
        """S of this prompt."""
        return expanded_length(len(self.input_ids), self.image_tokens)


@dataclass(frozen=True)
class AnswerEnd:
    """What ends an answer: any of some tokens, or a text (where the template's separator is ordinary text)."""

    token_ids: tuple[int, ...]
    text: str | None = None

    def cut(self, answer: str) -> str:
        """The answer without its end mark and the white space around it."""
        return (answer.split(self.text, 1)[0] if self.text else answer).strip()


class PromptMaker:
    """Makes prompts, batches and answer ends for one processor and one template."""

    def __init__(self, processor: Processor, template: str | None = None, context_length: int | None = None) -> None:
        self.processor = processor
        self.template = template or processor.default_template
        self.context_length = context_length
        self.encoder = TemplateEncoder(self.template, processor)
        tokenizer = processor.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.pad_token_id: int = 0 if pad is None else pad
        self._collator = Collator(processor, 0)

    def prompt(self, request: Request) -> Prompt:
        """The request's prompt; reads the sizes of its images and no pixels. Raises BadSampleError."""
        return self._prompt(request, self.encoder.encode_prompt(request.messages, request.verbatim))

    def answered_prompt(self, request: Request, answer: str) -> Prompt:
        """The request's prompt and the answer behind it, as a training sample has them. Raises BadSampleError."""
        [encoded] = self.encoder.encode([[*request.messages, {"from": "gpt", "value": answer}]])
        if isinstance(encoded, BadSampleError):
            raise encoded
        return self._prompt(request, encoded.input_ids, encoded.labels)

    def _prompt(self, request: Request, ids: NDArray[np.int32], labels: NDArray[np.int32] | None = None) -> Prompt:
        counts = [self._image_tokens(image, len(request.images)) for image in request.images]
        placeholders = int((ids == self.processor.image_token_id).sum())
        if placeholders != len(counts):
            text = f"{placeholders} image tokens in the prompt, {len(counts)} images"
            raise BadSampleError("image_count_mismatch", text)
        prompt = Prompt(request.id, ids, request.images, counts, labels)
        if self.context_length is not None and prompt.length >= self.context_length:
            raise BadSampleError(
                "prompt_too_long",
                f"the prompt takes {prompt.length} tokens, the model reads {self.context_length}; shorten it",
            )
        return prompt

    def _image_tokens(self, image: ImageSource, images: int) -> int:
        height, width = upright_size(image) if isinstance(image, Image.Image) else image_size(image)
        try:
            return self.processor.num_image_tokens(height, width, images)
        except ValueError as error:
            raise BadSampleError("unfit_image", f"an image of {width} × {height} pixels: {error}") from error

    def batch(self, prompts: Sequence[Prompt], images: Sequence[ImageInputs]) -> dict[str, Tensor]:
        """The model's inputs, padded on the left: `input_ids`, `attention_mask` int64[B, S] and what the family needs.

        `images` are `image_inputs` of each prompt.
        """
        width = max(prompt.length for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            is_image = prompt.input_ids == self.processor.image_token_id
            tokens = place_images(prompt.input_ids, is_image, images[row].runs)
            ids[row, width - len(tokens) :] = torch.from_numpy(tokens.astype(np.int64))
            mask[row, width - len(tokens) :] = 1
        joined = self.processor.join_pixels([one.pixels for one in images])
        return {"input_ids": ids, "attention_mask": mask, **self.processor.row_inputs(ids), **joined}

    def answered_batch(self, prompts: Sequence[Prompt], images: Sequence[ImageInputs]) -> dict[str, Tensor]:
        """The model's inputs for answered prompts, as training has them: with `labels`, padded on the right."""
        samples = []
        for prompt, of_prompt in zip(prompts, images, strict=True):
            assert prompt.labels is not None
            is_image = prompt.input_ids == self.processor.image_token_id
            tokens = (
                place_images(prompt.input_ids, is_image, of_prompt.runs),
                expand_images(prompt.labels, is_image, prompt.image_tokens),
            )
            ids, labels = (torch.from_numpy(row.astype(np.int64)) for row in tokens)
            samples.append({"input_ids": ids, "labels": labels, "vitw_task_ids": 0, **of_prompt.pixels})
        return self._collator(samples)

    def answer_end(self, generation_eos: int | Sequence[int] | None = None) -> AnswerEnd:
        """What this template ends an answer with, and the end tokens of the tokenizer and the checkpoint.

        What training taught as the end is the last target of a training sample: a special token in most templates
        (`</s>`, `<|im_end|>`), text in others (`###`), which then has to be looked for in the answer.
        """
        tokenizer = self.processor.tokenizer
        known = [generation_eos] if isinstance(generation_eos, int) else list(generation_eos or [])
        known += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        known += self.processor.end_token_ids
        last = self._last_target()
        if last in known:
            return AnswerEnd(tuple(dict.fromkeys(known)))
        if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder:
            return AnswerEnd(tuple(dict.fromkeys([*known, last])))
        conversation = conv_templates.get(self.template)
        text = None if conversation is None else conversation.sep2 or conversation.sep
        return AnswerEnd(tuple(dict.fromkeys(known)), text)

    def _last_target(self) -> int:
        question = {"from": "human", "value": DEFAULT_IMAGE_TOKEN}
        [encoded] = self.encoder.encode([[question, {"from": "gpt", "value": "a"}]])
        if isinstance(encoded, BadSampleError):
            raise ValueError(f"conversation template {self.template!r}: {encoded}")
        return int(encoded.input_ids[encoded.labels >= 0][-1])


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width in pixels of an image file. Raises BadSampleError."""
    folder, name = _split(path)
    return folder.size(name)


def open_image(image: ImageSource) -> Image.Image:
    """The image in RGB, upright. Raises BadSampleError."""
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except ValueError as error:
            raise BadSampleError("unreadable_image", str(error)) from error
    folder, name = _split(image)
    return folder.open(name)


def image_inputs(processor: Processor, prompt: Prompt) -> ImageInputs:
    """Pixels and tokens of a prompt's images, empty where it has none. Raises BadSampleError."""
    if not prompt.images:
        return ImageInputs({}, [])
    return processor.image_inputs([open_image(image) for image in prompt.images])


def _split(path: str | os.PathLike[str]) -> tuple[ImageFolder, str]:
    # Whoever names a file may point anywhere; only paths out of data files are confined to a folder.
    real = Path(os.path.realpath(path))
    return ImageFolder(real.parent), real.name
