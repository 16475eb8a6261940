"""Answer files: a question each, its truth, and what a model answered.

An answer file is a JSON list of records with exactly one human/assistant pair; the truth stands in
`conversations[1].value` (a string, or a list of references), the prediction in `conversations[1].generative_value`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from eval.errors import EvaluationError
from eval.files import read_json
from eval.names import NAMED
from eval.repeats import split_repeat

IDENTITY = ("task", "model", "split")
HUMAN_ROLES = ("human", "user")
ASSISTANT_ROLES = ("gpt", "assistant")
ANSWER_FILE_NAME = re.compile(rf"{NAMED}(?:-[^_]+)?(?:_(?P<model>.+))?")


def safe_name(name: str) -> str:
    """`name` as part of a file name: ":" becomes "-", and so does what file systems or shells mind.

    A repeat's "#" becomes "@": no other name has that on disk, so that task `A-2` and a second `A` keep apart.
    """
    model, repeat = split_repeat(name)
    return re.sub(r"[^\w.+-]", "-", model) + (f"@{repeat}" if repeat > 1 else "")


@dataclass(frozen=True)
class Sample:
    """One answered question. `references` holds at least one non-blank text; `record` is the record as read."""

    id: str
    question: str
    references: tuple[str, ...]
    prediction: str
    record: dict[str, Any]


class AnswerCounts(TypedDict):
    """What a score file says of its answers (`count_answers`)."""

    questions: int
    empty: int
    distinct: int
    most_common: int
    same_truth: int
    text: str


def count_answers(samples: Sequence[Sample]) -> AnswerCounts:
    """How many answers are empty, distinct and equal to the most common one, `text`; a collapsed model shows here.

    `same_truth` is on how many questions that answer is a truth. Case, blanks and a full stop at the end do not count.
    """
    said = Counter(_bare(sample.prediction) for sample in samples)
    text, count = said.most_common(1)[0] if said else ("", 0)
    return {
        "questions": len(samples),
        "empty": said[""],
        "distinct": len(said),
        "most_common": count,
        "same_truth": sum(text in map(_bare, sample.references) for sample in samples),
        "text": text[:80],
    }


def _bare(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".")


def read_answers(path: Path) -> list[Sample]:
    """All samples of an answer file, in its order; EvaluationError names the first record that is not as it should be.

    A question's id is the record's `question_id`, else its `id`, else its position; where an id comes again,
    `#2`, `#3`, … tell the questions apart, the same way for every model that answered the same file.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise EvaluationError(f"{path}: an answer file is a non-empty JSON list of records")
    seen: dict[str, int] = {}
    samples = []
    for position, record in enumerate(records):
        name = f"{path}: record {position}"
        if not isinstance(record, dict):
            raise EvaluationError(f"{name}: not a JSON object")
        key = str(record.get("question_id", record.get("id", position)))
        seen[key] = seen.get(key, 0) + 1
        sample_id = key if seen[key] == 1 else f"{key}#{seen[key]}"
        samples.append(_sample(record, sample_id, f"{name} (id {key})"))
    return samples


def _sample(record: dict[str, Any], sample_id: str, name: str) -> Sample:
    turns = record.get("conversations")
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        raise EvaluationError(f"{name}: `conversations` must be exactly one human/assistant pair")
    human, assistant = turns
    if human.get("from", "human") not in HUMAN_ROLES or assistant.get("from", "gpt") not in ASSISTANT_ROLES:
        raise EvaluationError(f"{name}: `conversations` must be a human turn and then an assistant turn")
    if "generative_value" not in assistant:
        raise EvaluationError(f"{name}: `generative_value` is missing; answer the file with inference_visatb.py first")
    prediction, question = assistant["generative_value"], human.get("value")
    if not isinstance(prediction, str):
        raise EvaluationError(f"{name}: `generative_value` must be a string, not {type(prediction).__name__}")
    if not isinstance(question, str):
        raise EvaluationError(f"{name}: the question (`conversations[0].value`) must be a string")
    truth = assistant.get("value")
    references = truth if isinstance(truth, list) else [truth]
    if not references or not all(isinstance(text, str) and text.strip() for text in references):
        raise EvaluationError(
            f"{name}: the truth (`conversations[1].value`) must be a text or a list of texts, none blank"
        )
    return Sample(sample_id, question, tuple(references), prediction, record)


def told(path: Path, samples: Sequence[Sample], **given: str | None) -> dict[str, str]:
    """Task, model and split of an answer file as far as anything tells: as given, else its records, else its name.

    Records say `task` and `generator`; the name is read as `{task}_{split}-{size}_{model}.json`. EvaluationError
    if records disagree.
    """
    match = ANSWER_FILE_NAME.fullmatch(path.stem)
    from_name = match.groupdict() if match else {}
    found = {key: given.get(key) or _said_by_records(path, samples, key) or from_name.get(key) for key in IDENTITY}
    return {key: value for key, value in found.items() if value}


def identify(path: Path, samples: Sequence[Sample], **given: str | None) -> dict[str, str]:
    """Task, model and split as `told`; EvaluationError naming all of them that nothing tells."""
    identity = told(path, samples, **given)
    if missing := [key for key in IDENTITY if key not in identity]:
        flags = " ".join(f"--{key}" for key in missing)
        raise EvaluationError(f"{path}: neither its name nor its records tell {in_words(missing)}; pass {flags}")
    return identity


def in_words(keys: Sequence[str]) -> str:
    """`task`, `model` and `split` in a sentence: "the task, the model and the split"."""
    names = [f"the {key}" for key in keys]
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])


def _said_by_records(path: Path, samples: Sequence[Sample], key: str) -> str | None:
    said: set[str | None] = set()
    for sample in samples:
        record = sample.record
        value = (
            record["conversations"][1].get("generator", record.get("generator")) if key == "model" else record.get(key)
        )
        if value is not None and not isinstance(value, str):
            raise EvaluationError(f"{path}: record id {sample.id}: its {key} must be a string")
        said.add(value)
    if len(said) > 1:
        names = ", ".join(sorted(map(str, said))[:4])
        raise EvaluationError(f"{path}: its records are of more than one {key} ({names}); pass --{key}")
    return said.pop()
