"""Turns by a model's own chat template, for models whose templates take a turn as a list of texts and images.

Where the answers stand in the text is found by rendering, not by knowing the template: once with the answers, once with
marks in their places, and for each answer once up to where it begins. What the three do not agree on is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Piece
from llava.data.errors import BadSampleError

_ROLES = {"human": "user", "gpt": "assistant"}
_MARK = "\ue000{}\ue001"  # of a range that no standard gives a meaning
_MARKS = re.compile("\ue000\\d+\ue001")
_PROBE = "qxvzprobe"
_TRIMS: tuple[Callable[[str], str], ...] = (lambda text: text, str.strip, str.lstrip, str.rstrip)
Turn = dict[str, Any]


class ChatTemplate:
    """A tokenizer's chat template, and how an answer ends in it.

    Args:
        image_part: what the template writes for an image; ``image_text`` is put in its place.
        end_token_ids: the tokens that end an answer by the model's generation settings.

    Attributes:
        end: the text that ends an answer, by the template itself.
        last_end: what is added behind the last answer because the template writes nothing there.
        begins_with_bos: whether the text holds the beginning token already.

    Raises ValueError for a template that cannot write a question and an answer, or ends no answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_part: str, image_text: str, end_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._image_part, self._image_text = image_part, image_text
        self._as_parts = {role: self._takes_parts(role) for role in _ROLES.values()}
        turns = [self._turn(role, number) for number, role in enumerate(["human", "gpt", "human", "gpt"])]
        once = _MARKS.split(self._probe(turns[:2]))
        twice = _MARKS.split(self._probe(turns))
        if len(once) != 3 or len(twice) != 5:
            raise ValueError("the chat template does not write each turn once")
        self.end, self.last_end = once[-1].rstrip(), ""
        if not self.end:
            self.end, self.last_end = self._end_by_token(twice[2], end_token_ids)
        self.begins_with_bos = bool(tokenizer.bos_token) and once[0].startswith(str(tokenizer.bos_token))

    def pieces(self, messages: Sequence[Mapping[str, str]], verbatim: bool = False) -> list[Piece]:
        """The conversation in order, cut where answers begin and end; one that ends with a question asks for an answer.

        Raises BadSampleError where it cannot be told from the text what the model would have to write.
        """
        turns = [self._content(message["from"], message["value"], verbatim) for message in messages]
        asks = messages[-1]["from"] == "human"
        text = self._render(turns, asks)
        spans = self._answer_spans(turns, text, asks)
        pieces, done = [], 0
        for begin, end in spans:
            pieces += [Piece(text[done:begin], False), Piece(text[begin:end], True)]
            done = end
        pieces.append(Piece(text[done:], False))
        if not asks and self.last_end:
            pieces[-1] = Piece(text[done:].rstrip() + self.last_end, True)
        return [Piece(piece.text.replace(self._image_part, self._image_text), piece.answer) for piece in pieces]

    def _answer_spans(self, turns: Sequence[Turn], text: str, asks: bool) -> list[tuple[int, int]]:
        """Where in `text` each answer with its end mark stands, from where the question for it stops."""
        indices = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
        answers = [self._text_of(turns[index]) for index in indices]
        marked = [self._turn("gpt", index) if turn["role"] == "assistant" else turn for index, turn in enumerate(turns)]
        between = _MARKS.split(self._render(marked, asks)) if indices else [text]
        if len(between) != len(indices) + 1:
            raise _unknown("does not write each answer once")
        answers = _as_written(text, between, answers)
        spans, at = [], 0
        for index, before, answer, after in zip(indices, between, answers, between[1:], strict=False):
            begin = at + len(before)
            at = begin + len(answer)
            prompt = self._render(turns[:index], True)
            last = index == len(turns) - 1
            if last and not _same_words(text[:begin], prompt) and not text.startswith(prompt):
                raise _unknown("asks for the last answer in another way than it writes it")
            if text.startswith(prompt) and len(prompt) <= begin:
                begin = len(prompt)
            ends = after.startswith(self.end)
            if last and not ends and not self.last_end:
                raise _unknown(f"does not end the last answer with {self.end!r}")
            spans.append((begin, at + (len(self.end) if ends else 0)))
        return spans

    def _render(self, turns: Sequence[Turn], asks: bool) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=asks))
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise BadSampleError("template_mismatch", f"the chat template cannot write it: {error}") from error

    def _probe(self, turns: Sequence[Turn]) -> str:
        try:
            return self._render(turns, False)
        except BadSampleError as error:
            raise ValueError(error.detail) from error

    def _takes_parts(self, role: str) -> bool:
        """Whether turns of a role may be lists of parts; else they are plain text."""
        question: Turn = {"role": "user", "content": [{"type": "text", "text": "a"}]}
        for in_parts in (True, False):
            content = [{"type": "text", "text": _PROBE}] if in_parts else _PROBE
            turns = [{"role": role, "content": content}]
            try:
                text = self._render(turns if role == "user" else [question, *turns], False)
            except BadSampleError:
                continue
            if text.count(_PROBE) == 1 and "'type'" not in text:
                return in_parts
        raise ValueError(f"the chat template writes no turn of the {role}")

    def _turn(self, speaker: str, number: int) -> Turn:
        return self._content(speaker, _MARK.format(number), True)

    def _content(self, speaker: str, text: str, verbatim: bool) -> Turn:
        role = _ROLES[speaker]
        if not self._as_parts[role]:
            return {"role": role, "content": text}
        if not verbatim:
            # LLaVA's data puts an image on a line of its own; a template has its own way.
            text = text.replace(DEFAULT_IMAGE_TOKEN + "\n", DEFAULT_IMAGE_TOKEN)
            text = text.replace("\n" + DEFAULT_IMAGE_TOKEN, DEFAULT_IMAGE_TOKEN)
        parts: list[dict[str, str]] = []
        for number, stretch in enumerate(text.split(DEFAULT_IMAGE_TOKEN)):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": stretch}] if stretch else []
        return {"role": role, "content": parts}

    @staticmethod
    def _text_of(turn: Turn) -> str:
        content = turn["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

    def _end_by_token(self, after: str, end_token_ids: Sequence[int]) -> tuple[str, str]:
        """Ends of an answer within and at the end of a conversation, where the template writes none at its end.

        GLM's next turn begins with a token that ends the answer; other models have an end token that no turn shows.
        """
        ends = [str(self._tokenizer.convert_ids_to_tokens(token)) for token in end_token_ids]
        known = [*ends, *([str(self._tokenizer.eos_token)] if self._tokenizer.eos_token else [])]
        for token in known:
            if after.lstrip().startswith(token):
                return after[: after.index(token) + len(token)], after[: after.index(token) + len(token)]
        if not known:
            raise ValueError("neither the chat template nor the tokenizer says how an answer ends")
        return known[-1], known[-1]


def _as_written(text: str, between: Sequence[str], answers: Sequence[str]) -> list[str]:
    """The answers as the template writes them: as they are, or without white space at their ends."""
    for trim in _TRIMS:
        written = [trim(answer) for answer in answers]
        whole = "".join(part for pair in zip(between, written, strict=False) for part in pair) + between[-1]
        if whole == text:
            return written
    raise _unknown("rewrites answers")


def _same_words(text: str, other: str) -> bool:
    """Whether two texts differ in white space alone (LLaVA-OneVision writes a blank that it does not ask with)."""
    return text.split() == other.split()


def _unknown(what: str) -> BadSampleError:
    return BadSampleError("template_mismatch", f"the chat template {what}; labels are unknown")
