"""From the turns of a record to token ids and labels.

Legend: s tokens of one sample, with ONE placeholder token per image.

For LLaVA's own templates the prompt is cut at its images and each stretch of text is tokenised for itself, as
LLaVA-v1.5 does; for a tokenizer's own chat template the text is tokenised whole. Labels come from the tokens' places in
the text: a token is a target when its last character belongs to an answer. For the Vicuna template that gives
LLaVA-v1.5's labels, with legacy and newer sentencepiece tokenizers alike. (LLaVA counts tokens instead, and drops the
whole sample when its count does not come out, for instance when a question contains " ASSISTANT: "; here such a sample
keeps its labels.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import CHAT_TEMPLATE, Piece, SeparatorStyle, conv_templates
from llava.data.errors import BadSampleError

if TYPE_CHECKING:
    from llava.model.family import Processor

Messages = Sequence[Mapping[str, str]]
"""Turns as data files hold them: `{"from": "human" | "gpt", "value": text}`, human and gpt in turn."""

_CHAT_ROLES = {"human": "user", "gpt": "assistant"}


class Encoded(NamedTuple):
    """Token ids and labels of one sample, both int32[s]."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]


class _Chunk(NamedTuple):
    """A stretch of text that is tokenised in one go; `ends[i]` is where piece i ends in it."""

    text: str
    ends: NDArray[np.int64]
    answers: NDArray[np.bool_]


class TemplateEncoder:
    """Encodes samples with one template and one processor."""

    def __init__(self, template: str, processor: Processor) -> None:
        check_template(template, processor.tokenizer)
        self.template = template
        self.tokenizer = processor.tokenizer
        self.image_token_id = processor.image_token_id
        self.image_text = processor.image_text
        self.image_ids = image_ids(processor)
        first = self.tokenizer("a").input_ids[0]
        self.counts_turns = template != CHAT_TEMPLATE and conv_templates[template].sep_style is SeparatorStyle.SINGLE
        self.adds_bos = template != CHAT_TEMPLATE and first == self.tokenizer.bos_token_id

    def encode(self, samples: Sequence[Messages]) -> list[Encoded | BadSampleError]:
        """Ids and labels of each sample, or what is wrong with it."""
        chunked: list[list[_Chunk] | BadSampleError] = []
        for messages in samples:
            try:
                chunked.append(self._chunks(self._render(messages)))
            except BadSampleError as error:
                chunked.append(error)
        tokenised = iter(self._tokenise([c for chunks in chunked if isinstance(chunks, list) for c in chunks]))
        encoded = [self._join(chunks, tokenised) if isinstance(chunks, list) else chunks for chunks in chunked]
        if not self.counts_turns:
            return encoded
        pairs = zip(samples, encoded, strict=True)
        return [one if isinstance(one, BadSampleError) else self._mask_by_count(turns, one) for turns, one in pairs]

    def encode_prompt(self, messages: Messages, verbatim: bool = False) -> NDArray[np.int32]:
        """Ids of the prompt up to where the answer begins; the last turn must be a human one.

        `verbatim`: turns are put as they stand, white space at their ends and places of images included.
        """
        if not messages or messages[-1]["from"] != "human":
            raise BadSampleError("not_alternating", "a prompt must end with a human turn")
        chunks = self._chunks(self._render(messages, verbatim))
        encoded = self._join(chunks, iter(self._tokenise(chunks)))
        if isinstance(encoded, BadSampleError):
            raise encoded
        return encoded.input_ids

    def _render(self, messages: Messages, verbatim: bool = False) -> list[Piece]:
        if self.template == CHAT_TEMPLATE:
            return self._render_chat(messages)
        conversation = conv_templates[self.template].copy()
        conversation.messages = []
        plain = conversation.sep_style is SeparatorStyle.PLAIN
        if plain and len(messages) > 2:
            raise BadSampleError("template_mismatch", "the plain template takes one question and one answer")
        for message in messages:
            text = message["value"] if verbatim else lead_with_image(message["value"])
            if plain and message["from"] == "human":
                text = DEFAULT_IMAGE_TOKEN * text.count(DEFAULT_IMAGE_TOKEN)
                if not text:
                    raise BadSampleError("template_mismatch", "the plain template needs an image")
            conversation.append_message(conversation.roles[message["from"] == "gpt"], text)
        if messages[-1]["from"] == "human":
            conversation.append_message(conversation.roles[1], None)
            return conversation.pieces()
        return conversation.training_pieces()

    def _mask_by_count(self, messages: Messages, encoded: Encoded) -> Encoded:
        """The labels of LLaVA's v0: it counts the tokens of each turn, taken by itself with a start token.

        Masked are the system text and of each human turn all but its first two tokens, the "###" that ends the answer
        before it. With Llama's vocabulary "###" is one token where a turn begins a text and two inside one, so that the
        start token evens it out. With another vocabulary LLaVA's mask shifts by a token a turn, and so does this one.
        """
        ids, labels, at = encoded.input_ids, encoded.input_ids.copy(), 0
        for number, piece in enumerate(self._render(messages)[:-1]):
            end = at + self._length_alone(piece.text)
            if not piece.answer:
                labels[at + (2 if number else 0) : end] = IGNORE_INDEX
            at = end
        labels[ids == self.image_token_id] = IGNORE_INDEX
        labels[:1] = IGNORE_INDEX
        return Encoded(ids, labels)

    def _length_alone(self, text: str) -> int:
        """Tokens of a text by itself, start token included."""
        stretches = text.split(DEFAULT_IMAGE_TOKEN)
        tokens = self.tokenizer(stretches, add_special_tokens=False, verbose=False).input_ids
        return self.adds_bos + sum(map(len, tokens)) + (len(stretches) - 1) * len(self.image_ids)

    def _render_chat(self, messages: Messages) -> list[Piece]:
        turns = [
            {"role": _CHAT_ROLES[message["from"]], "content": self._inline_images(message["value"])}
            for message in messages
        ]
        pieces: list[Piece] = []
        done = ""
        for position, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self._chat_text(turns[:position], answer_follows=True)
            whole = self._chat_text(turns[: position + 1], answer_follows=False)
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                raise BadSampleError(
                    "template_mismatch", "the chat template rewrites earlier turns; labels are unknown"
                )
            end = len(prompt) + _answer_length(whole[len(prompt) :], turn["content"])
            pieces += [Piece(prompt[len(done) :], False), Piece(whole[len(prompt) : end], True)]
            done = whole[:end]
        rest = self._chat_text(turns, answer_follows=turns[-1]["role"] == "user")
        if not rest.startswith(done):
            raise BadSampleError("template_mismatch", "the chat template rewrites earlier turns; labels are unknown")
        return [*pieces, Piece(rest[len(done) :], False)]

    def _chat_text(self, turns: list[dict[str, str]], answer_follows: bool) -> str:
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_follows))

    def _inline_images(self, text: str) -> str:
        # LLaVA's data puts an image on a line of its own; chat models read it directly beside the text.
        text = text.replace(DEFAULT_IMAGE_TOKEN + "\n", DEFAULT_IMAGE_TOKEN)
        text = text.replace("\n" + DEFAULT_IMAGE_TOKEN, DEFAULT_IMAGE_TOKEN)
        return text.replace(DEFAULT_IMAGE_TOKEN, self.image_text)

    def _chunks(self, pieces: list[Piece]) -> list[_Chunk]:
        if self.template == CHAT_TEMPLATE:
            return [_chunk(pieces)]
        chunks: list[_Chunk] = []
        current: list[Piece] = []
        for piece in pieces:
            first, *others = piece.text.split(DEFAULT_IMAGE_TOKEN)
            current.append(Piece(first, piece.answer))
            for text in others:
                chunks.append(_chunk(current))
                current = [Piece(text, piece.answer)]
        return [*chunks, _chunk(current)]

    def _tokenise(self, chunks: Sequence[_Chunk]) -> Iterable[Encoded]:
        if not chunks:
            return
        # What many samples share, such as everything before the image, is tokenised once.
        index_of = {text: index for index, text in enumerate(dict.fromkeys(chunk.text for chunk in chunks))}
        batch = self.tokenizer(
            list(index_of),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids = [np.asarray(tokens, dtype=np.int32) for tokens in batch["input_ids"]]
        last_characters = [np.array([end - 1 for _, end in offsets]) for offsets in batch["offset_mapping"]]
        for chunk in chunks:
            index = index_of[chunk.text]
            yield _label(chunk, ids[index], last_characters[index])

    def _join(self, chunks: Sequence[_Chunk], tokenised: Iterable[Encoded]) -> Encoded | BadSampleError:
        """The sample's tokens from its chunks' tokens, images between them."""
        source = iter(tokenised)
        image = Encoded(self.image_ids, np.full_like(self.image_ids, IGNORE_INDEX))
        parts: list[Encoded] = []
        if self.adds_bos:
            bos = np.array([self.tokenizer.bos_token_id], dtype=np.int32)
            parts.append(Encoded(bos, np.full_like(bos, IGNORE_INDEX)))
        for position, _ in enumerate(chunks):
            if position:
                parts.append(image)
            parts.append(next(source))
        ids = np.concatenate([part.input_ids for part in parts])
        labels = np.concatenate([part.labels for part in parts])
        labels[ids == self.image_token_id] = IGNORE_INDEX
        labels[:1] = IGNORE_INDEX  # nothing comes before the first token that could predict it
        return Encoded(ids, labels)


def encode(messages: Messages, template: str, processor: Processor) -> Encoded:
    """Ids and labels (both int32[s]) of one sample; `labels` is IGNORE_INDEX off the answers.

    Raises BadSampleError when the template cannot express the turns.
    """
    [encoded] = TemplateEncoder(template, processor).encode([messages])
    if isinstance(encoded, BadSampleError):
        raise encoded
    return encoded


def encode_prompt(messages: Messages, template: str, processor: Processor) -> NDArray[np.int32]:
    """Ids int32[s] of a prompt that ends where the model's answer begins; the last turn is the human's."""
    return TemplateEncoder(template, processor).encode_prompt(messages)


def check_template(template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for an unknown template or a tokenizer that cannot serve it."""
    if template != CHAT_TEMPLATE and template not in conv_templates:
        known = ", ".join(sorted([*conv_templates, CHAT_TEMPLATE]))
        raise ValueError(f"unknown conversation template {template!r}; known: {known}")
    if template == CHAT_TEMPLATE and not tokenizer.chat_template:
        raise ValueError("conversation template 'chat' needs a tokenizer that has a chat template; this one has none")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no text offsets; a tokenizer with tokenizer.json is needed")


def image_ids(processor: Processor) -> NDArray[np.int32]:
    """Tokens of one image before its placeholder is repeated; holds the placeholder exactly once."""
    ids = np.asarray(processor.tokenizer(processor.image_text, add_special_tokens=False).input_ids, dtype=np.int32)
    if (ids == processor.image_token_id).sum() != 1:
        raise ValueError(f"{processor.image_text!r} does not become exactly one image token {processor.image_token_id}")
    return ids


def lead_with_image(text: str) -> str:
    """LLaVA-v1.5's habit: the image of a turn stands first, on a line of its own.

    With several images in one turn their places carry meaning, so they stay where they are.
    """
    if text.count(DEFAULT_IMAGE_TOKEN) != 1:
        return text
    rest = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    return f"{DEFAULT_IMAGE_TOKEN}\n{rest}".strip()


def _answer_length(tail: str, answer: str) -> int:
    """Characters of `tail` that the model has to write: the answer and its end mark, not the white space after."""
    kept = len(answer) if tail.startswith(answer) else 0
    return kept + len(tail[kept:].rstrip())


def _chunk(pieces: Sequence[Piece]) -> _Chunk:
    ends = np.cumsum([len(piece.text) for piece in pieces])
    return _Chunk("".join(piece.text for piece in pieces), ends, np.array([piece.answer for piece in pieces]))


def _label(chunk: _Chunk, ids: NDArray[np.int32], last_characters: NDArray[np.int64]) -> Encoded:
    """`last_characters[i]` is the place in the text of the last character of token i."""
    if not chunk.answers.any() or not len(ids):
        return Encoded(ids, np.full_like(ids, IGNORE_INDEX))
    # -1, the end of a token of no characters, falls into the first piece
    piece = np.searchsorted(chunk.ends, last_characters, side="right")
    is_target = chunk.answers[np.minimum(piece, len(chunk.answers) - 1)]
    return Encoded(ids, np.where(is_target, ids, np.int32(IGNORE_INDEX)))
