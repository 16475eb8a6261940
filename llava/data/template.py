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

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import CHAT_TEMPLATE, Piece, SeparatorStyle, conv_templates
from llava.data.chat import ChatTemplate
from llava.data.errors import BadSampleError
from llava.data.flat import FlatSamples, ranges, starts_of

if TYPE_CHECKING:
    from tokenizers import Encoding

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
    ends: list[int]
    answers: list[bool]


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
        self.chat: ChatTemplate | None = None
        if template == CHAT_TEMPLATE and processor.in_parts:
            self.chat = ChatTemplate(
                self.tokenizer, processor.image_part, processor.image_text, processor.end_token_ids
            )
        self.counts_turns = template != CHAT_TEMPLATE and conv_templates[template].sep_style is SeparatorStyle.SINGLE
        writes_bos = template == CHAT_TEMPLATE if self.chat is None else self.chat.begins_with_bos
        self.adds_bos = not writes_bos and first == self.tokenizer.bos_token_id

    def encode(self, samples: Sequence[Messages]) -> list[Encoded | BadSampleError]:
        """Ids and labels of each sample, or what is wrong with it."""
        encoded, problems = self.encode_flat(samples)
        return [problems.get(number) or Encoded(*encoded.sample(number)) for number in range(len(samples))]

    def encode_flat(self, samples: Sequence[Messages]) -> tuple[FlatSamples, dict[int, BadSampleError]]:
        """The samples one after the other, and what is wrong with some, by their numbers; those have no tokens."""
        chunked: list[list[_Chunk]] = []
        problems: dict[int, BadSampleError] = {}
        for number, messages in enumerate(samples):
            try:
                chunked.append(self._chunks(self._render(messages)))
            except BadSampleError as error:
                chunked.append([])
                problems[number] = error
        encoded = self._join(chunked)
        if self.counts_turns:
            for number, messages in enumerate(samples):
                if number not in problems:
                    self._mask_by_count(messages, Encoded(*encoded.sample(number)))
        return encoded, problems

    def encode_prompt(self, messages: Messages, verbatim: bool = False) -> NDArray[np.int32]:
        """Ids of the prompt up to where the answer begins; the last turn must be a human one.

        `verbatim`: turns are put as they stand, white space at their ends and places of images included.
        """
        if not messages or messages[-1]["from"] != "human":
            raise BadSampleError("not_alternating", "a prompt must end with a human turn")
        return self._join([self._chunks(self._render(messages, verbatim))]).input_ids

    def _render(self, messages: Messages, verbatim: bool = False) -> list[Piece]:
        if self.chat is not None:
            return self.chat.pieces(messages, verbatim)
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

    def _mask_by_count(self, messages: Messages, encoded: Encoded) -> None:
        """Put LLaVA's labels for v0 in the place of those given.

        It counts the tokens of each turn, taken by itself with a start token.
        Masked are the system text and of each human turn all but its first two tokens, the "###" that ends the answer
        before it. With Llama's vocabulary "###" is one token where a turn begins a text and two inside one, so that the
        start token evens it out. With another vocabulary LLaVA's mask shifts by a token a turn, and so does this one.
        """
        ids, labels, at = encoded.input_ids, encoded.labels, 0
        labels[:] = ids
        for number, piece in enumerate(self._render(messages)[:-1]):
            end = at + self._length_alone(piece.text)
            if not piece.answer:
                labels[at + (2 if number else 0) : end] = IGNORE_INDEX
            at = end
        labels[ids == self.image_token_id] = IGNORE_INDEX
        labels[:1] = IGNORE_INDEX

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

    def _join(self, samples: Sequence[Sequence[_Chunk]]) -> FlatSamples:
        """The samples' tokens from those of their chunks, images between them; a sample without chunks has none."""
        chunks = list(chain.from_iterable(samples))
        ids, is_target, lengths = self._tokenise(chunks)
        per_sample = np.array([len(of_sample) for of_sample in samples], dtype=np.int64)
        is_first = np.zeros(len(chunks), dtype=np.bool_)
        is_first[starts_of(per_sample)[:-1][per_sample > 0]] = True
        # Before each chunk lies an image, before a sample's first one the start token, if any.
        before = np.where(is_first, int(self.adds_bos), len(self.image_ids))
        ends = np.cumsum(before + lengths)
        starts = np.concatenate([[0], ends])[starts_of(per_sample)]
        joined = np.empty(starts[-1], dtype=np.int32)
        labels = np.full_like(joined, IGNORE_INDEX)
        places = ranges(ends - lengths, lengths)
        joined[places] = ids
        labels[places[is_target]] = ids[is_target]
        images = (ends - lengths)[~is_first] - len(self.image_ids)
        joined[images[:, None] + np.arange(len(self.image_ids))] = self.image_ids
        if self.adds_bos:
            joined[(ends - lengths)[is_first] - 1] = self.tokenizer.bos_token_id
        labels[joined == self.image_token_id] = IGNORE_INDEX
        # Nothing comes before the first token that could predict it.
        labels[starts[:-1][starts[1:] > starts[:-1]]] = IGNORE_INDEX
        return FlatSamples(joined, labels, starts)

    def _tokenise(self, chunks: Sequence[_Chunk]) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
        """The ids of all chunks one after the other, whether each is a target, and how many each chunk has."""
        # What many samples share, such as everything before the image, is tokenised once.
        number_of: dict[str, int] = {}
        numbers = np.array([number_of.setdefault(chunk.text, len(number_of)) for chunk in chunks], dtype=np.int64)
        encodings = self._encode_texts(list(number_of))
        tokens = [encoding.ids for encoding in encodings]
        sizes = np.array([len(of_text) for of_text in tokens], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(tokens), np.int32, int(sizes.sum()))
        first, lengths = starts_of(sizes)[:-1], sizes[numbers]
        is_target = np.zeros(int(lengths.sum()), dtype=np.bool_)
        asked = np.array([number for number, chunk in enumerate(chunks) if any(chunk.answers)], dtype=np.int64)
        if len(asked):
            offsets = chain.from_iterable(encodings[number].offsets for number in numbers[asked].tolist())
            ends = np.fromiter((end for _, end in offsets), np.int64, int(lengths[asked].sum()))
            places = ranges(starts_of(lengths)[asked], lengths[asked])
            is_target[places] = _in_answer([chunks[number] for number in asked.tolist()], lengths[asked], ends - 1)
        return flat[ranges(first[numbers], lengths)], is_target, lengths

    def _encode_texts(self, texts: list[str]) -> Sequence[Encoding]:
        """What the tokenizer makes of texts, without transformers' conversion of it, which takes longer than this."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        encodings: Sequence[Encoding] = backend.encode_batch(texts, add_special_tokens=False)
        return encodings


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
    texts = [piece.text for piece in pieces]
    return _Chunk("".join(texts), list(accumulate(map(len, texts))), [piece.answer for piece in pieces])


def _in_answer(
    chunks: Sequence[_Chunk], lengths: NDArray[np.int64], last_characters: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each token of the chunks, which have `lengths` tokens, belongs to an answer.

    `last_characters` are the places of the tokens' last characters in the texts of their chunks.
    """
    # The texts are laid end to end, so that one search finds the pieces of all tokens.
    begins = starts_of(np.array([len(chunk.text) for chunk in chunks]))[:-1]
    pieces = np.array([len(chunk.ends) for chunk in chunks])
    ends = np.fromiter(chain.from_iterable(chunk.ends for chunk in chunks), np.int64, int(pieces.sum()))
    ends += np.repeat(begins, pieces)
    piece = np.searchsorted(ends, np.repeat(begins, lengths) + last_characters, side="right")
    # A token of no characters may end before its text begins; it falls into the first piece.
    first = starts_of(pieces)
    piece = np.clip(piece, np.repeat(first[:-1], lengths), np.repeat(first[1:] - 1, lengths))
    answers = np.fromiter(chain.from_iterable(chunk.answers for chunk in chunks), np.bool_, int(pieces.sum()))
    return answers[piece]
