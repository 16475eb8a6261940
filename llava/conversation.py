"""Conversation templates: how the turns of a record become one prompt string.

`Conversation` keeps the interface LLaVA users know (`copy`, `append_message`, `get_prompt`, `roles`, `sep`, ...).
The prompt is built as a list of pieces, each marked as answer or not, so that training labels and inference prompts
come from the same lines of code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple


class SeparatorStyle(Enum):
    """How turns are joined."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


class Piece(NamedTuple):
    """A stretch of the prompt; `answer` marks what the model has to learn to write."""

    text: str
    answer: bool


@dataclass
class Conversation:
    """One template, and the turns filled in so far.

    `messages` holds `[role, text]`; a text of None stands for the answer still to be generated and must come last.
    """

    system: str
    roles: tuple[str, str]
    sep_style: SeparatorStyle
    sep: str
    sep2: str | None = None
    version: str = "unknown"
    messages: list[list[Any]] = field(default_factory=list)
    offset: int = 0

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn; None for the answer that is to be generated."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """An independent conversation with the same template and turns."""
        return Conversation(
            system=self.system,
            roles=self.roles,
            sep_style=self.sep_style,
            sep=self.sep,
            sep2=self.sep2,
            version=self.version,
            messages=[list(message) for message in self.messages],
            offset=self.offset,
        )

    def get_prompt(self) -> str:
        """The whole prompt as one string."""
        return "".join(piece.text for piece in self.pieces())

    def pieces(self) -> list[Piece]:
        """The prompt in order, cut where answers begin and end."""
        pieces = [Piece(self._opening(), False)]
        for position, (_, message) in enumerate(self.messages):
            pieces.extend(self._turn(position, message))
        return [piece for piece in pieces if piece.text]

    def training_pieces(self) -> list[Piece]:
        """What a finished conversation is trained on: `pieces`, unless LLaVA trains on another text than it asks with.

        It does for SINGLE: one piece for the system text, one for each turn, and the mark that would open a next turn.
        """
        if self.sep_style is not SeparatorStyle.SINGLE:
            return self.pieces()
        begin = f"{self.sep} "
        turns = [Piece(f"{begin}{role}: {text}\n", role == self.roles[1]) for role, text in self.messages]
        return [Piece(f"{self.system}\n\n", False), *turns, Piece(begin, True)]

    def _opening(self) -> str:
        if self.sep_style in (SeparatorStyle.PLAIN, SeparatorStyle.LLAMA_2):
            return ""  # PLAIN has no system text; LLAMA_2 carries it inside the first turn
        return self.system + self.sep

    def _turn(self, position: int, message: str | None) -> Iterable[Piece]:
        role = self.messages[position][0]
        is_answer = role == self.roles[1] if self.roles[0] != self.roles[1] else position % 2 == 1
        if self.sep_style is SeparatorStyle.LLAMA_2:
            return self._llama2_turn(position, message, is_answer)
        if self.sep_style is SeparatorStyle.PLAIN:
            end = self.sep if is_answer else ""
            return [Piece((message or "") + (end if message is not None else ""), is_answer)]
        if self.sep_style is SeparatorStyle.MPT:
            head, lead, end = role, "", self.sep
        elif self.sep_style is SeparatorStyle.SINGLE:
            head, lead, end = f"{role}:", " ", self.sep
        else:
            head, lead, end = f"{role}:", " ", (self.sep2 or "") if is_answer else self.sep
        if not message:
            return [Piece(head, False)]
        return [Piece(head, False), Piece(lead + message + end, is_answer)]

    def _llama2_turn(self, position: int, message: str | None, is_answer: bool) -> list[Piece]:
        if not message:
            return []
        if is_answer:
            return [Piece(f" {message} {self.sep2}", True)]
        if position == 0:
            system = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system else ""
            return [Piece(f"[INST] {system}{message} [/INST]", False)]  # the tokenizer itself writes the first <s>
        return [Piece(f"{self.sep}[INST] {message} [/INST]", False)]


_POLITE = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)

conv_vicuna_v0 = Conversation(
    system=_POLITE.format("human"),
    roles=("Human", "Assistant"),
    sep_style=SeparatorStyle.SINGLE,
    sep="###",
    version="v0",
)
conv_vicuna_v1 = Conversation(
    system=_POLITE.format("user"),
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.TWO,
    sep=" ",
    sep2="</s>",
    version="v1",
)
conv_llava_v1 = Conversation(
    system=_POLITE.format("human"),
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.TWO,
    sep=" ",
    sep2="</s>",
    version="v1",
)
conv_llava_plain = Conversation(
    system="",
    roles=("", ""),
    sep_style=SeparatorStyle.PLAIN,
    sep="\n",
    version="plain",
)
conv_llava_llama_2 = Conversation(
    system=(
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
        "provides, and assist the user with a variety of tasks using natural language."
    ),
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.LLAMA_2,
    sep="<s>",
    sep2="</s>",
    version="llama_v2",
)
conv_mistral_instruct = Conversation(
    system="",
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.LLAMA_2,
    sep="",
    sep2="</s>",
    version="llama_v2",
)
conv_chatml_direct = Conversation(
    system="<|im_start|>system\nAnswer the questions.",
    roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
    sep_style=SeparatorStyle.MPT,
    sep="<|im_end|>",
    version="mpt",
)

conv_templates: dict[str, Conversation] = {
    "v0": conv_vicuna_v0,
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llava_v1": conv_llava_v1,
    "plain": conv_llava_plain,
    "llava_llama_2": conv_llava_llama_2,
    "mistral_instruct": conv_mistral_instruct,
    "chatml_direct": conv_chatml_direct,
}
"""Templates by the names LLaVA gives them (v0 without its long worked example)."""

CHAT_TEMPLATE = "chat"
"""Name that stands for the tokenizer's own chat template."""

default_conversation = conv_vicuna_v1
