"""ShareGPT (text only) and ShareGPT4V (detailed captions) of the Academic Benchmark."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.data.records import record_images
from visatb.prepare.files import find, find_all, records, text
from visatb.prepare.output import Output, count, pick
from visatb.prepare.qa import scaled
from visatb.prepare.source import PrepareError, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SHAREGPT, SHAREGPT4V = "ShareGPT", "ShareGPT4V"
MAX_TOKENS = 2048
SPLIT_SIZE = 2_000
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "chatgpt": "gpt", "bing": "gpt", "bard": "gpt"}
_SPOILT = ("openai", "chatgpt")  # answers about the service itself, left out as Vicuna's cleaning does
_BATCH = 64

Turns = list[dict[str, Any]]


class ShareGPT:
    """`sharegpt/*.json`: conversations as ShareGPT's collections ship them (the cleaned, not the HTML form)."""

    def __init__(self, source: Path) -> None:
        self._folder = source / "sharegpt"

    def files(self) -> list[Path]:
        return find_all(self._folder, "*.json")

    def entries(self) -> Iterator[dict[str, Any]]:
        """All records."""
        return itertools.chain.from_iterable(map(records, self.files()))


def write_sharegpt(source: ShareGPT, output: Output, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the valid conversations, cut at 2,048 tokens; paper, Appendix A (6)."""
    dropped: Counter[str] = Counter()
    output.write(SHAREGPT, "train", _cut(valid_conversations(source.entries(), dropped), tokenizer, dropped))
    for reason, number in dropped.most_common():
        logger.info("%s: %d conversations left out: %s", SHAREGPT, number, reason)


def valid_conversations(entries: Iterator[dict[str, Any]], dropped: Counter[str]) -> Iterator[Record]:
    """The conversations that can be trained on; why others cannot is counted in `dropped`."""
    seen: set[bytes] = set()
    for number, entry in enumerate(entries):
        turns = _turns(entry.get("conversations"))
        if isinstance(turns, str):
            dropped[turns] += 1
            continue
        key = hashlib.blake2b("\0".join(turn["value"] for turn in turns).encode(), digest_size=8).digest()
        if key in seen:
            dropped["the same as an earlier one"] += 1
            continue
        seen.add(key)
        yield {"id": str(entry.get("id", number)), "conversations": turns}


def _turns(conversations: Any) -> Turns | str:
    """Alternating turns from the first human one to the last answer, or why there are none."""
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        return "no list of turns"
    turns = [{"from": _ROLES.get(str(t.get("from")), "?"), "value": text(t.get("value"))} for t in conversations]
    while turns and turns[0]["from"] != "human":
        turns.pop(0)
    while turns and turns[-1]["from"] != "gpt":
        turns.pop()
    if len(turns) < 2:
        return "no question with an answer"
    if any(turn["from"] != ("human", "gpt")[index % 2] for index, turn in enumerate(turns)):
        return "speakers do not alternate"
    if not all(turn["value"] for turn in turns):
        return "an empty turn"
    whole = " ".join(turn["value"] for turn in turns)
    if any(word in whole.lower() for word in _SPOILT):
        return f"mentions {' or '.join(_SPOILT)}"
    if DEFAULT_IMAGE_TOKEN in whole:
        return f"holds {DEFAULT_IMAGE_TOKEN}, which stands for an image"
    return turns


def _cut(
    conversations: Iterator[Record], tokenizer: PreTrainedTokenizerBase, dropped: Counter[str]
) -> Iterator[Record]:
    while batch := list(itertools.islice(conversations, _BATCH)):
        pieces = [_pieces(record["conversations"]) for record in batch]
        texts = [piece for conversation in pieces for piece in conversation]
        lengths = iter([len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids])
        for record, conversation in zip(batch, pieces, strict=True):
            turns = cut_turns(record["conversations"], [next(lengths) for _ in conversation], tokenizer)
            if turns:
                yield {**record, "conversations": turns}
            else:
                dropped[f"the first question alone has {MAX_TOKENS} tokens"] += 1


def _pieces(turns: Turns) -> list[str]:
    """The Vicuna prompt in as many pieces as there are turns, the system text in the first."""
    template = conv_templates["v1"].copy()
    first, *rest = [_with_marks(template.roles, turn, template.sep, template.sep2 or "") for turn in turns]
    return [template.system + template.sep + first, *rest]


def _with_marks(roles: Sequence[str], turn: dict[str, Any], after_question: str, after_answer: str) -> str:
    answer = turn["from"] == "gpt"
    return f"{roles[answer]}: {turn['value']}{after_answer if answer else after_question}"


def cut_turns(turns: Turns, lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Turns:
    """The leading rounds that fit into 2,048 tokens with the begin token; of a first round that does not, the answer
    is cut. Nothing where its question leaves no room for one. `lengths` are the tokens of each turn's piece."""
    total, kept = 1, 0
    for index in range(0, len(turns), 2):
        total += lengths[index] + lengths[index + 1]
        if total > MAX_TOKENS:
            break
        kept = index + 2
    if kept:
        return turns[:kept]
    question, answer = turns[:2]
    marks = lengths[1] - len(tokenizer(answer["value"], add_special_tokens=False).input_ids)
    room = MAX_TOKENS - 1 - lengths[0] - max(marks, 0) - 1  # one token may part where the text is cut
    shortened = _first_tokens(answer["value"], room, tokenizer)
    return [question, {**answer, "value": shortened}] if shortened else []


def _first_tokens(value: str, room: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if room <= 0:
        return ""
    ids = tokenizer(value, add_special_tokens=False).input_ids[:room]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).rstrip("\ufffd").strip()


class ShareGPT4V:
    """`sharegpt4v/sharegpt4v_instruct_gpt4-vision_cap100k.json`: GPT-4V's captions, images as the file names them."""

    def __init__(self, source: Path) -> None:
        self._folder = source / "sharegpt4v"

    def files(self) -> list[Path]:
        return [find(self._folder, "sharegpt4v_instruct_gpt4-vision_cap100k.json", "sharegpt4v*.json")]

    def entries(self) -> Iterator[Record]:
        """The records, in LLaVA's form."""
        (file,) = self.files()
        for number, entry in enumerate(records(file)):
            turns = entry.get("conversations")
            if not isinstance(turns, list) or len(turns) != 2 or not entry.get("image"):
                raise PrepareError(f"{file}, record {entry.get('id', number)}: not one question on one image")
            yield {"id": str(entry.get("id", number)), "image": entry["image"], "conversations": turns}


def write_sharegpt4v(source: ShareGPT4V, output: Output, scale: float) -> None:
    """Write 2,000 for validation, 2,000 for test, the rest for training, at random; paper, Appendix A (1)."""

    def entries() -> Iterator[Record]:
        every = source.entries()
        return (r for r in every if all(map(output.has, record_images(r)))) if output.drop_missing else every

    total, size = count(entries()), scaled(SPLIT_SIZE, scale)
    if total <= 2 * size:
        raise PrepareError(
            f"{source.files()[0]} has {total} usable records, too few to take {size} each for validation and test "
            "from; --scale takes fewer"
        )
    part = output.parts(total, (size, size), SHAREGPT4V)
    for split, number in (("val", 0), ("test", 1), ("train", 2)):
        output.write(SHAREGPT4V, split, pick(entries(), part == number))
