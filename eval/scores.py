"""Scores: what a metric returns, and the score file and per-sample file that it is written to and read from.

A metric turns n samples into columns of n values; a column's value is the weighted mean of its values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.answers import IDENTITY, AnswerCounts, Sample, count_answers
from eval.errors import EvaluationError
from eval.files import read_json, write_json


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
class Measure:
    """One value that a metric gives of an answer file: its name in files, its label, and a short one for tables.

    `percent`: whether it is a fraction that readers are shown in percent.
    """

    metric: str
    label: str
    short: str
    percent: bool = False
    higher_is_better: bool = True

    def column(
        self,
        values: Sequence[float],
        weights: Sequence[float] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Column:
        """Its values over n samples; `details` are what the score file says of it beside."""
        return Column(self.metric, self.label, values, weights, self.higher_is_better, details or {})


@dataclass(frozen=True)
class Scored:
    """What a metric returns for n samples: one or more columns, and which of them could not be scored (n flags).

    `notes` say what a reader of the values must know of the file; whoever knows its name logs them with it.
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

    def write(self, scores: Path | None, per_sample: Path | None) -> None:
        """Write the files that are asked for; EvaluationError where they cannot be written.

        Per-sample scores come first: whoever sees the score file may rely on what stands beside it.
        """
        if per_sample:
            write_json(per_sample, self.per_sample_file())
        if scores:
            write_json(scores, self.score_file())


@dataclass(frozen=True)
class Score:
    """One metric of a score file."""

    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class ScoreFile:
    """A score file as read: whose score it is ("" where it does not say), and at least one metric.

    The first metric is the one that feeds task weighting. `answers` counts empty, distinct and equal answers; older
    files have none.
    """

    path: Path
    task: str
    model: str
    split: str
    num_samples: int
    num_malformed: int
    scores: tuple[Score, ...]
    answers: AnswerCounts | None = None

    @property
    def first(self) -> Score:
        """The metric that feeds task weighting."""
        return self.scores[0]


@dataclass(frozen=True)
class SampleFile:
    """A per-sample file as read: whose scores they are, and n question ids with n values (and weights) of each metric.

    `columns` holds the metrics that all questions have: values and weights (1 where the metric is a plain mean).
    """

    path: Path
    task: str
    model: str
    split: str
    ids: list[str]
    columns: dict[str, tuple[list[float], list[float]]]


def missing_identity(file: ScoreFile | SampleFile) -> list[str]:
    """Which of task, model and split a file does not say."""
    return [key for key in IDENTITY if not getattr(file, key)]


def read_scores(path: Path, split: str | None = None) -> ScoreFile | SampleFile | None:
    """A score file or a per-sample file; None for any other JSON file, and for one of another split than `split`.

    Raises:
        EvaluationError: the file cannot be read, or an entry is missing or of another type.
    """
    content = read_json(path)
    if not _is_scores(content) or (split is not None and content.get("split", split) != split):
        return None
    return _sample_file(path, content) if "samples" in content else _score_file(path, content)


def read_score_file(path: Path) -> ScoreFile:
    """A score file; EvaluationError where it is missing or none."""
    found = read_scores(path)
    if not isinstance(found, ScoreFile):
        raise EvaluationError(f"{path}: not a score file")
    return found


def _is_scores(content: Any) -> bool:
    """Whether this is a score file or a per-sample file, whoever's it is."""
    if not isinstance(content, dict) or not {"scores", "samples"} & content.keys():
        return False
    if content.keys() >= set(IDENTITY):
        return True
    rows = content.get("samples", [])
    return "num_malformed" in content or bool(rows and isinstance(rows[0], dict) and "malformed" in rows[0])


def _identity(content: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(content.get(key, "")) for key in IDENTITY}


def _score_file(path: Path, content: Mapping[str, Any]) -> ScoreFile:
    try:
        scores = tuple(_score(entry) for entry in content["scores"])
        if not scores:
            raise ValueError("it holds no score")
        return ScoreFile(
            path=path,
            **_identity(content),
            num_samples=int(content["num_samples"]),
            num_malformed=int(content.get("num_malformed", 0)),
            scores=scores,
            answers=content.get("answers"),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EvaluationError(f"{path}: not a score file ({type(error).__name__}: {error})") from error


def _score(entry: Mapping[str, Any]) -> Score:
    value, stderr = entry["value"], entry.get("stderr")
    number = not isinstance(value, bool) and math.isfinite(value)
    if not number or (stderr is not None and not stderr >= 0):
        raise ValueError(f"value {value!r}, stderr {stderr!r}")
    return Score(
        metric=str(entry["metric"]),
        value=float(value),
        stderr=None if stderr is None else float(stderr),
        higher_is_better=bool(entry.get("higher_is_better", True)),
    )


def _sample_file(path: Path, content: Mapping[str, Any]) -> SampleFile:
    try:
        entries = content["samples"]
        ids = [str(entry["id"]) for entry in entries]
        metrics = [] if not entries else [name for name in entries[0]["values"] if _all_have(entries, name)]
        columns = {
            name: (
                [float(entry["values"][name]) for entry in entries],
                [float(entry.get("weights", {}).get(name, 1.0)) for entry in entries],
            )
            for name in metrics
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path}: not a per-sample file ({type(error).__name__}: {error})") from error
    return SampleFile(path=path, **_identity(content), ids=ids, columns=columns)


def _all_have(entries: Sequence[Mapping[str, Any]], metric: str) -> bool:
    return all(metric in entry["values"] for entry in entries)
