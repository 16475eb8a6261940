"""What a benchmark is: where its questions come from, how they are put, and how answers are scored.

Questions are records as a file holds them, answers the same with `generative_value` in `conversations[1]`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.records import Record

OPTION_LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Questions:
    """All questions of a benchmark, and the folder that their image paths are relative to."""

    records: list[Record]
    image_folder: Path


@dataclass(frozen=True)
class Score:
    """One metric's value. `scale` is what it is multiplied by for readers: 100 for fractions, 1 for points."""

    metric: str
    value: float
    stderr: float | None = None
    scale: float = 100.0


@dataclass(frozen=True)
class Result:
    """The values of an answer file, the chief one first. `groups`: parts of the benchmark → metric → value.

    `details` say how the chief value came about (the judge and its settings).
    """

    scores: list[Score]
    num_malformed: int = 0
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Submission:
    """A file for a benchmark's server; `content` by suffix: .json anything, .jsonl rows, .xlsx rows after a header."""

    suffix: str
    content: Any


class Benchmark(ABC):
    """One benchmark.

    `name` is what it goes by on the command line, `title` its column in tables (ΔI_zero knows seven of them),
    `max_new_tokens` the official limit of an answer.
    """

    name: str
    title: str
    max_new_tokens: int = 128
    judge: str | None = None
    """The metric of `eval` that scores it, where a language model has to."""

    @abstractmethod
    def questions(self, data: Path, unpacked: Path) -> Questions:
        """The questions in their official order, from the official files under `data`.

        Images that lie in tables are written to `unpacked`. Raises DataError naming what is missing or broken.
        """

    def score(self, answers: Sequence[Record]) -> Result | None:
        """The values, None where only a server or a judge can tell. `answers` may be the first questions only."""
        return None

    def submission(self, answers: Sequence[Record], data: Path) -> Submission | None:
        """The file for the benchmark's server, None where it has none."""
        return None

    def judge_options(self, data: Path) -> dict[str, Any]:
        """Options of the judge metric."""
        return {}


def make_record(
    task: str, question_id: Any, prompt: str, image: str | None, truth: str | Sequence[str] = "", **more: Any
) -> Record:
    """A question with its image (if any) in front, as LLaVA puts it; `more` are further fields of the record.

    It is put verbatim: LLaVA strips white space off training samples and ScienceQA's questions, but off no others.
    """
    shown = {} if image is None else {"image": image}
    text = prompt if image is None else f"{DEFAULT_IMAGE_TOKEN}\n{prompt}"
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": truth}]
    return {"id": question_id, **shown, "task": task, "split": "test", "verbatim": True, **more, "conversations": turns}


def prediction(record: Mapping[str, Any]) -> str:
    """The model's answer."""
    return str(record["conversations"][1]["generative_value"])


def truth_of(record: Mapping[str, Any]) -> Any:
    """The right answer, or the list of them."""
    return record["conversations"][1]["value"]


def mean_score(metric: str, values: Sequence[float]) -> Score:
    """The mean of fractions, with its standard error where there are two or more."""
    n = len(values)
    if not n:
        return Score(metric, 0.0)
    mean = math.fsum(values) / n
    if n < 2:
        return Score(metric, mean)
    return Score(metric, mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n))


def group_means(names: Sequence[str], values: Sequence[float], metric: str = "accuracy") -> dict[str, dict[str, Any]]:
    """The mean of the values under each name, names in order of appearance."""
    parts: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        parts.setdefault(name, []).append(value)
    return {name: {metric: math.fsum(part) / len(part), "num_samples": len(part)} for name, part in parts.items()}


def with_options(question: str, options: Mapping[str, str], instruction: str = OPTION_LETTER) -> str:
    """A multiple-choice question: the options below it, one line each, then the instruction."""
    lines = [question, *(f"{letter}. {text}" for letter, text in options.items())]
    return "\n".join([*lines, instruction] if instruction else lines)
