"""Batched generation with one model.

Requests are answered longest first, padded on the left; images are read ahead in worker processes. A batch that does
not fit in memory is halved and so are those after it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from llava.data.errors import BadSampleError, DataError
from llava.infer.batching import MAX_BATCH, batch_size_for_memory, is_out_of_memory, plan_batches
from llava.infer.prompts import Prompt, PromptMaker, Request, image_inputs
from llava.mm_utils import KeywordsStoppingCriteria
from llava.model.family import ImageInputs, Processor, family_of
from transformers_patch.forward import patch_forward
from transformers_patch.loss import valid_targets

logger = logging.getLogger(__name__)
T = TypeVar("T")

_WORKERS_FROM_IMAGES = 64  # starting processes for fewer takes longer than reading them


class RequestError(DataError):
    """A request that cannot be answered as it is; `error` says what is wrong with it."""

    def __init__(self, request_id: Any, error: BadSampleError) -> None:
        super().__init__(f"request {request_id}: {error.detail}")
        self.request_id = request_id
        self.error = error


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are written. Temperature 0 is greedy (or plain beam search), the same at every run.

    `batch_size` None: as memory allows. `num_workers` None: one per spare CPU core up to 4, none for few images.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    batch_size: int | None = None
    num_workers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError("max_new_tokens, num_beams and batch size must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and be at most 1, not {self.top_p}")


class Generator:
    """Answers requests with a model on its device.

    The model's own generation settings (sampling, penalties) are put aside: only its end tokens are kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Processor,
        template: str | None = None,
        settings: GenerationSettings | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.settings = settings or GenerationSettings()
        self.prompts = PromptMaker(processor, template, context_positions(model.config))
        eos = getattr(model.generation_config, "eos_token_id", None)
        self.end = self.prompts.answer_end(eos)
        # transformers would fill our unset values from it; a later generator on this model looks for its end tokens
        model.generation_config = GenerationConfig(eos_token_id=eos)
        real = family_of(model.config).real_vocab_size(model.config) or len(processor.tokenizer)
        self._logits = LogitsProcessorList([_TextOnly(real, processor.unwritten_ids)])
        self._limit: int | None = None  # rows that once proved too many are not tried again
        torch.manual_seed(self.settings.seed)

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[Any, str]]:
        """`(id, answer)` of every request, in the order in which they are done.

        Raises RequestError for one that cannot be asked, before any is answered.
        """
        prompts = []
        for request in requests:
            try:
                prompts.append(self.prompts.prompt(request))
            except BadSampleError as error:
                raise RequestError(request.id, error) from error
        for batch in self.generate_batches(prompts):
            yield from batch

    def generate_batches(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[Any, str]]]:
        """`(id, answer)` of every prompt, batch by batch. Raises RequestError for an image that cannot be read."""
        return self._batches(prompts, self._answers)

    def states(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[Any, Tensor]]]:
        """`(id, state)` of every prompt: the last layer's state behind its last token, float32[hidden], on the CPU.

        It is what the answer's first token is read from. Raises RequestError as `generate_batches`.
        """
        return self._batches(prompts, self._states)

    def losses(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[Any, tuple[float, int]]]]:
        """`(id, (loss, tokens))` of every answered prompt: the sum of its answer's token losses, and their number.

        It is what training would add for this sample, in nats. Raises RequestError as `generate_batches`.
        """
        patch_forward(self.model, vocab_size=family_of(self.model.config).real_vocab_size(self.model.config))
        return self._batches(prompts, self._losses, self.prompts.answered_batch)

    def _batches(
        self,
        prompts: Sequence[Prompt],
        work: Callable[[dict[str, Tensor]], list[T]],
        join: Callable[[Sequence[Prompt], Sequence[ImageInputs]], dict[str, Tensor]] | None = None,
    ) -> Iterator[list[tuple[Any, T]]]:
        """`(id, what work makes of it)` of every prompt, batch by batch."""
        prompts = sorted(prompts, key=lambda prompt: -prompt.length)
        batches = self._plan(prompts)
        for batch, loaded in zip(batches, self._load(prompts, batches), strict=True):
            rows = [prompts[index] for index in batch]
            for prompt, one in zip(rows, loaded, strict=True):
                if isinstance(one, BadSampleError):
                    raise RequestError(prompt.id, one)
            outputs = self._fitting(rows, loaded, work, join or self.prompts.batch)
            yield [(prompt.id, one) for prompt, one in zip(rows, outputs, strict=True)]

    def stream(self, request: Request) -> Iterator[str]:
        """The answer to one request, in pieces as it is written. Raises BadSampleError."""
        prompt = self.prompts.prompt(request)
        inputs = self._on_device(self.prompts.batch([prompt], [image_inputs(self.processor, prompt)]))
        tokenizer: Any = self.processor.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        failed: list[Exception] = []

        def work() -> None:
            try:
                self._run(inputs, streamer)
            except Exception as error:  # handed to the reader's thread below
                failed.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        yield from until(self.end.text, streamer)
        thread.join()
        for error in failed:
            raise error

    def _plan(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        settings = self.settings
        if settings.batch_size is not None:
            return plan_batches(prompts, 0, settings.batch_size, settings.batch_size)
        if not prompts:
            return []
        device = self.model.device
        first = batch_size_for_memory(
            self.model.config,
            prompts[0].length,
            settings.max_new_tokens,
            settings.num_beams,
            device,
            self.model.dtype,
        )
        return plan_batches(
            prompts, settings.max_new_tokens, first, MAX_BATCH["cuda" if device.type == "cuda" else "cpu"]
        )

    def _load(self, prompts: Sequence[Prompt], batches: list[list[int]]) -> Iterable[list[Any]]:
        images = sum(len(prompt.images) for prompt in prompts)
        workers = self.settings.num_workers
        if workers is None:
            spare = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1
            workers = max(0, min(4, spare)) if images >= _WORKERS_FROM_IMAGES else 0
        dataset = _PixelBatches(prompts, batches, self.processor)
        return DataLoader(dataset, batch_size=None, num_workers=workers if images else 0, collate_fn=_as_they_are)

    def _fitting(
        self,
        prompts: Sequence[Prompt],
        images: Sequence[ImageInputs],
        work: Callable[[dict[str, Tensor]], list[T]],
        join: Callable[[Sequence[Prompt], Sequence[ImageInputs]], dict[str, Tensor]],
    ) -> list[T]:
        """What `work` makes of the prompts, in as few passes as memory allows."""
        size = len(prompts) if self._limit is None else min(self._limit, len(prompts))
        outputs: list[T] = []
        while len(outputs) < len(prompts):
            part = slice(len(outputs), len(outputs) + size)
            try:
                rows = prompts[part]
                # a batch for training may have one more row, with a blank image
                outputs += work(self._on_device(join(rows, images[part])))[: len(rows)]
                continue
            except RuntimeError as error:
                if len(rows) == 1 or not is_out_of_memory(error):
                    raise
            # outside the handler, so that the traceback no longer holds the pass's tensors
            size = self._limit = len(rows) // 2
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning("out of memory with %d prompts at once; going on with %d", len(rows), size)
        return outputs

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        model = self.model
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in batch.items()
        }

    def _answers(self, inputs: dict[str, Tensor]) -> list[str]:
        written = self._run(inputs)[:, inputs["input_ids"].shape[1] :].tolist()
        ends = set(self.end.token_ids)
        answers = [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in written]
        texts = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [self.end.cut(text) for text in texts]

    def _states(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        head: Any = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args: found.append(args[0][:, -1]))
        try:
            self._run(inputs)
        finally:
            handle.remove()
        return list(found[0].float().cpu())

    @torch.inference_mode()
    def _losses(self, inputs: dict[str, Tensor]) -> list[tuple[float, int]]:
        counts = valid_targets(inputs["labels"]).sum(1).tolist()
        losses = self.model(**inputs).token_losses.double().split(counts)
        return [(float(of_row.sum()), count) for of_row, count in zip(losses, counts, strict=True)]

    @torch.inference_mode()
    def _run(self, inputs: dict[str, Tensor], streamer: TextIteratorStreamer | None = None) -> Tensor:
        settings = self.settings
        sampling: dict[str, Any] = (
            {"temperature": settings.temperature, "top_p": settings.top_p} if settings.temperature > 0 else {}
        )
        config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=settings.temperature > 0,
            num_beams=settings.num_beams,
            eos_token_id=list(self.end.token_ids) or None,
            pad_token_id=self.prompts.pad_token_id,
            **sampling,
        )
        stopping = StoppingCriteriaList()
        if self.end.text is not None:
            stopping.append(KeywordsStoppingCriteria([self.end.text], self.processor.tokenizer, inputs["input_ids"]))
        generate: Any = self.model.generate  # typed as a tensor where PEFT may wrap the model
        return generate(
            **inputs,
            generation_config=config,
            logits_processor=self._logits,
            stopping_criteria=stopping,
            streamer=streamer,
        )


def context_positions(config: PretrainedConfig) -> int | None:
    """Tokens that a model has positions for, None where it sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


class _TextOnly(LogitsProcessor):
    """Keeps tokens that stand for no text from being written: padding rows of the vocabulary, image placeholders."""

    def __init__(self, real: int, unwritten: Sequence[int]) -> None:
        self.real = real
        self.unwritten = list(unwritten)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores: float[B, V]`, changed in place: what stands for no text is at minus infinity."""
        scores[:, self.real :] = -torch.inf
        scores[:, self.unwritten] = -torch.inf
        return scores


class _PixelBatches(Dataset[list[Any]]):
    """Pixels of each prompt of a batch, or the BadSampleError that says what is wrong with an image."""

    def __init__(self, prompts: Sequence[Prompt], batches: list[list[int]], processor: Processor) -> None:
        self.prompts = prompts
        self.batches = batches
        self.processor = processor

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Any]:
        return [self._images(self.prompts[index]) for index in self.batches[number]]

    def _images(self, prompt: Prompt) -> ImageInputs | BadSampleError:
        try:
            return image_inputs(self.processor, prompt)
        except BadSampleError as error:  # returned: raised in a worker, it would come back as a traceback in a message
            return error


def _as_they_are(images: list[Any]) -> list[Any]:
    """A batch as its data set gives it; torch would make tensors of all arrays in it."""
    return images


def until(end: str | None, pieces: Iterable[str]) -> Iterator[str]:
    """The text of `pieces` up to `end`; what may be the beginning of `end` is held back until it is known."""
    held = ""
    for piece in pieces:
        held += piece
        if end is None:
            keep = 0
        elif end in held:
            yield held.split(end, 1)[0]
            return
        else:
            keep = next((n for n in range(min(len(end) - 1, len(held)), 0, -1) if end.startswith(held[-n:])), 0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held
