"""Answer files in, score files out: what every evaluator shares.

An answer file is a JSON list of records with exactly one human/assistant pair; the truth stands in
`conversations[1].value` (a string, or a list of references), the prediction in `conversations[1].generative_value`.
A metric turns n samples into columns of n values; a column's figure is the weighted mean of its values.
Nothing here imports numpy or torch, so that an evaluator starts at once.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.disk import move_into_place

IDENTITY = ("task", "model", "split")
HUMAN_ROLES = ("human", "user")
ASSISTANT_ROLES = ("gpt", "assistant")
# {benchmark/task}(-mini|-plus-mini)_{train|val|test}-{size}_{model}
ANSWER_FILE_NAME = re.compile(
    r"(?P<task>.+?)(?:-plus-mini|-mini)?_(?P<split>train|val|test)(?:-[^_]+)?(?:_(?P<model>.+))?"
)


class EvaluationError(ValueError):
    """Bad input of an evaluator; the message names the file, the record and what would mend it."""


@dataclass(frozen=True)
class Sample:
    """One answered question. `references` holds at least one non-blank text; `record` is the record as read."""

    id: str
    question: str
    references: tuple[str, ...]
    prediction: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One metric's values over n samples: its figure is Σ weight·value / Σ weight (weights: 1 unless given).

    `metric` is the name in files, `label` the one for readers, `details` what the score file says of it beside.
    """

    metric: str
    label: str
    values: Sequence[float]
    weights: Sequence[float] | None = None
    higher_is_better: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)

    def mean(self) -> float:
        """The metric's figure over all samples; 0 where every weight is 0."""
        if self.weights is None:
            return math.fsum(self.values) / len(self.values)
        total = math.fsum(self.weights)
        return math.fsum(w * v for w, v in zip(self.weights, self.values, strict=True)) / total if total else 0.0

    def stderr(self) -> float | None:
        """Standard error of `mean` over samples drawn at random, None for fewer than two samples.

        With equal weights this is the standard error of the mean (n − 1 in the variance), otherwise the
        linearised one of a ratio of two sums. For CIDEr the document frequencies count as given.
        """
        n = len(self.values)
        if n < 2:
            return None
        weights = self.weights or [1.0] * n
        total, mean = math.fsum(weights), self.mean()
        if not total:
            return 0.0
        squares = math.fsum((w * (v - mean)) ** 2 for w, v in zip(weights, self.values, strict=True))
        return math.sqrt(squares * n / (n - 1)) / total


@dataclass(frozen=True)
class Scored:
    """What a metric returns for n samples: one or more columns, and which of them could not be scored (n flags).

    `notes` say what a reader of the figures must know of the file; whoever knows its name logs them with it.
    """

    columns: list[Column]
    malformed: list[bool]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """A scored answer file: the samples, their scores, and whose answers they are."""

    samples: list[Sample]
    scored: Scored
    identity: dict[str, str] = field(default_factory=dict)  # task, model, split, as far as told

    def score_file(self) -> dict[str, Any]:
        """The score file's content; the first metric is the one that feeds task weighting."""
        return {
            **self.identity,
            "num_samples": len(self.samples),
            "num_malformed": sum(self.scored.malformed),
            "answers": count_answers(self.samples),
            "scores": [
                {
                    "metric": column.metric,
                    "value": column.mean(),
                    "stderr": column.stderr(),
                    "higher_is_better": column.higher_is_better,
                    **column.details,
                }
                for column in self.scored.columns
            ],
        }

    def per_sample_file(self) -> dict[str, Any]:
        """One entry per question id: its values by metric, and its weight where the metric is not a plain mean."""
        entries: list[dict[str, Any]] = []
        for row, sample in enumerate(self.samples):
            entry: dict[str, Any] = {
                "id": sample.id,
                "values": {column.metric: column.values[row] for column in self.scored.columns},
                "malformed": self.scored.malformed[row],
            }
            weights = {c.metric: c.weights[row] for c in self.scored.columns if c.weights is not None}
            entries.append({**entry, "weights": weights} if weights else entry)
        return {**self.identity, "samples": entries}


def count_answers(samples: Sequence[Sample]) -> dict[str, Any]:
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


def read_json(path: Path) -> Any:
    """The JSON content of `path`; EvaluationError if it is missing, cut off or not UTF-8 JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: not valid JSON ({error}); was the run that wrote it cut off?") from error


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` whole or not at all: a temporary name in the same folder, then a rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1, allow_nan=False)
            stream.write("\n")
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which would keep colleagues from reading results
        move_into_place(temporary, path)
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


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
