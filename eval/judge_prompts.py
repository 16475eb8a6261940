"""What a judge is asked, and how its verdict is read: the review of LLaVA-Bench, and the grades of MM-Vet.

The review's frame (context, question, reference as the first answer, the model's as the second, then the rule) is that
of LLaVA's evaluation; its rules may be read from LLaVA's `rule.json`. All wording here is our own.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.answers import Sample
from eval.errors import EvaluationError
from eval.files import read_json
from eval.judge_cache import Messages, Reply

logger = logging.getLogger(__name__)

# The names of the Chat benchmark's tasks, as the categories of LLaVA's rules.
RULE_NAMES = {"conversation": "conv", "complex_reasoning": "complex", "detailed_description": "detail"}
REVIEW_SYSTEM = "You are a careful reviewer who compares two answers and scores both of them fairly."
REVIEW_REQUEST = {"temperature": 0.2, "max_tokens": 1024}
GRADE_REQUEST = {"temperature": 0.0, "max_tokens": 32}
TOP_SCORE = 10.0

_SEEN = {
    "boxes": "You cannot see it: instead, the context above describes it by several sentences and by the objects in "
    "it, each with its box (x1, y1, x2, y2), where (x1, y1) is the upper left and (x2, y2) the lower right corner, in "
    "fractions of the image's width and height.",
    "caption": "You cannot see it: instead, the context above describes it.",
    "": "You cannot see it.",
}
_RULE = (
    "Two assistants answered the user's question about an image. {seen}\n"
    "Score each answer from 1 (worst) to 10 (best). Weigh how helpful it is to the user, how relevant to the question, "
    "how accurate, and how rich in the details that the question calls for. Neither the order of the answers nor "
    "their length as such may sway you.\n"
    "Begin with a line that holds nothing but the two scores, that of Assistant 1 first, with a space between them. "
    "Then explain both scores from the next line on."
)
_GRADE = """\
Grade how much of the truth is in a model's answer to a question about an image that you cannot see.

The grade is one of 0.0 (nothing is right), 0.1, 0.2, and so on up to 1.0 (all is right). In the truth, <AND> joins \
parts which must all be in the answer, each counting as much; <OR> joins versions of which one is enough. Other words \
for the same thing are as good. What an answer says beyond the truth costs nothing unless it contradicts it. \
Reply with the grade alone.

Question: How many ducks swim on the pond?
Truth: five
Answer: There are 5 ducks on the water.
Grade: 1.0

Question: Which fruit lies in the bowl, and what does the card beside it say?
Truth: pears <AND> help yourself
Answer: The bowl is filled with pears.
Grade: 0.5

Question: What is the seat number on the ticket?
Truth: 14C <OR> row 14, seat C
Answer: seat 41C
Grade: 0.0

Question: Which three prices are on the board?
Truth: 6 <AND> 8 <AND> 10
Answer: The board lists 6 and 8, and 14 at the bottom.
Grade: 0.7

Question: Why has everybody on the platform looked up?
Truth: the departure board has just changed and announces that the train is cancelled
Answer: They seem to look at a display, perhaps because there is news about their train.
Grade: 0.5

Question: {question}
Truth: {truth}
Answer: {answer}
Grade:"""

_NUMBER = r"(\d{1,2}(?:\.\d+)?)(?:\s*/\s*10)?"
_SCORES = re.compile(rf"(?:scores?\s*:\s*)?{_NUMBER}(?:\s*[,;]\s*|\s+and\s+|\s+){_NUMBER}\.?", re.IGNORECASE)
_ONE_GRADE = re.compile(r"(?:grade\s*:\s*)?([01](?:\.\d+)?)\.?", re.IGNORECASE)
_THINKING = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_BOX_LINE = re.compile(r": [\[(]\d[\d., ]*[\])]$", re.MULTILINE)
_ORNAMENT = " \t*_`\"'()[]"


@dataclass(frozen=True)
class Rule:
    """How a review is to be made: the name of the parties in the frame, and the instruction after it."""

    role: str
    prompt: str


class Rules:
    """Review rules by category: LLaVA's file where one is given, else our own, which are alike for all categories."""

    def __init__(self, path: Path | None = None) -> None:
        """EvaluationError where the file is not `{category: {"role", "prompt"}}`."""
        self.path = path
        self._rules: dict[str, Rule] = {}
        if path is None:
            return
        content = read_json(path)
        try:
            self._rules = {name: Rule(str(rule["role"]), str(rule["prompt"])) for name, rule in content.items()}
        except (AttributeError, TypeError, LookupError) as error:
            raise EvaluationError(f'{path}: not a file of rules, {{category: {{"role": …, "prompt": …}}}}') from error

    def find(self, category: str, context: str) -> Rule:
        """The rule of a category: LLaVA has other ones, `llava_bench_…`, where the context is a caption alone."""
        kind = context_kind(context)
        if self.path is None:
            return Rule("Assistant", _RULE.format(seen=_SEEN[kind]))
        name = RULE_NAMES.get(category, category)
        names = ([f"llava_bench_{name}"] if kind == "caption" else []) + [name, "default"]
        for candidate in names:
            if candidate in self._rules:
                return self._rules[candidate]
        raise EvaluationError(f"{self.path}: no rule for category {category!r} (looked for {', '.join(names)})")


class Contexts:
    """What the judge is told of each image: by the record's own `context`, else by a file of LLaVA's format."""

    def __init__(self, path: Path | None = None) -> None:
        """EvaluationError where a line of the file has no image, or neither caption nor captions."""
        self.path = path
        self._texts: dict[str, str] = {}
        self._warned = False
        for number, line in enumerate(_lines(path) if path else [], 1):
            try:
                entry = json.loads(line)
                self._texts[_image_name(entry["image"])] = _describe(entry)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise EvaluationError(
                    f"{path}, line {number}: not a context (`image`, and `caption` or `captions` and `instances`)"
                ) from error

    def find(self, sample: Sample) -> str:
        """The description of a sample's image, empty where there is none to be had.

        EvaluationError where the record has none and the file, if given, does not know its image.
        """
        own = sample.record.get("context")
        if isinstance(own, str) and own.strip():
            return own.strip()
        if self.path is None:
            if not self._warned:
                logger.warning("record id %s has no `context`: the judge is told nothing of its image", sample.id)
            self._warned = True
            return ""
        image = sample.record.get("image")
        text = self._texts.get(_image_name(image)) if isinstance(image, str) else None
        if text is None:
            raise EvaluationError(f"record id {sample.id}: {self.path} does not describe its image, {image!r}")
        return text


def context_kind(context: str) -> str:
    """`boxes`, `caption`, or empty: how a context describes an image."""
    if not context:
        return ""
    return "boxes" if _BOX_LINE.search(context) else "caption"


def category(sample: Sample) -> str:
    """A sample's category: its record's `category`, else its `task`, else `all`."""
    return str(sample.record.get("category") or sample.record.get("task") or "all")


def question_text(sample: Sample) -> str:
    """What was asked, without the image's placeholder."""
    return sample.question.replace("<image>", "").strip()


def review_messages(sample: Sample, rule: Rule, context: str) -> Messages:
    """The request for a review: the (first) reference is answer 1, the model's is answer 2."""
    parts = [f"[Context]\n{context}"] if context else []
    parts.append(f"[Question]\n{question_text(sample)}")
    for place, answer in enumerate((sample.references[0], sample.prediction), 1):
        name = f"{rule.role} {place}"
        parts.append(f"[{name}]\n{answer.strip()}\n\n[End of {name}]")
    parts.append(f"[System]\n{rule.prompt}\n\n")
    return [{"role": "system", "content": REVIEW_SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def read_review(reply: Reply) -> tuple[float, float] | None:
    """(reference's score, model's score), each up to 10, from a review's first line; None where it does not hold them.

    A reply that was cut off within its first line may lack a part of the second score.
    """
    line, rest = _first_line(reply.text)
    match = _SCORES.fullmatch(line)
    if not match or (reply.cut_off and not rest):
        return None
    reference, model = (float(match.group(place)) for place in (1, 2))
    return (reference, model) if 0 < reference <= TOP_SCORE and model <= TOP_SCORE else None


def grade_messages(sample: Sample) -> Messages:
    """The request for a grade between 0 and 1."""
    truth = " <OR> ".join(sample.references)
    fields = {"question": question_text(sample), "truth": truth, "answer": sample.prediction.strip()}
    return [{"role": "user", "content": _GRADE.format(**fields)}]


def read_grade(reply: Reply) -> tuple[float] | None:
    """The grade, 0 to 1, from a reply's first line; None where it does not stand there."""
    line, rest = _first_line(reply.text)
    match = _ONE_GRADE.fullmatch(line)
    if not match or (reply.cut_off and not rest) or float(match.group(1)) > 1:
        return None
    return (float(match.group(1)),)


def _first_line(text: str) -> tuple[str, bool]:
    """The first line that is not blank, without ornaments, and whether the text goes on after it.

    What an open model thought aloud before its answer is left out.
    """
    text = _THINKING.sub("", text, count=1) if text.lstrip().startswith("<think>") else text
    line, newline, _ = text.lstrip().partition("\n")
    return line.strip().strip(_ORNAMENT).strip(), bool(newline)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error})") from error


def _image_name(image: str) -> str:
    return Path(image).name.removeprefix("COCO_val2014_")


def _describe(entry: dict[str, Any]) -> str:
    said = entry["captions"] if "captions" in entry else entry["caption"]
    captions = [said] if isinstance(said, str) else said
    boxes = [f"{found['category']}: {found['bbox']}" for found in entry.get("instances", [])]
    return "\n".join([*captions, "", *boxes]).strip()
