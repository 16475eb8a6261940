"""A score file and its per-sample values as cells: one metric of one model on one task."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.errors import EvaluationError
from eval.scores import SampleFile, ScoreFile, read_score_file, read_scores
from visatb.workdir.layout import Layout


@dataclass(frozen=True)
class Cell:
    """One metric of one score file: its figure, standard error, and per-sample values where they are kept.

    `ids`: n question ids; `values`, `weights`: n numbers each (the figure is the weighted mean); empty without them.
    """

    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool
    ids: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


def cells_of(scores: ScoreFile, samples: SampleFile | None) -> list[Cell]:
    """The metrics of a score file in their order, with the values of its per-sample file where that has them."""
    columns = samples.columns if samples else {}
    cells = []
    for score in scores.scores:
        ids = samples.ids if samples and score.metric in columns else []
        values, weights = columns.get(score.metric, ([], []))
        cells.append(Cell(score.metric, score.value, score.stderr, score.higher_is_better, ids, values, weights))
    return cells


def read_cells(layout: Layout, task: str, model: str) -> list[Cell]:
    """A model's test figures of a task, in the order of its metrics; empty where its score is not of our making.

    Raises:
        EvaluationError: a file is damaged.
    """
    path, beside = layout.score("test", task, model), layout.per_sample("test", task, model)
    if not path.is_file():
        return []
    try:
        samples = read_scores(beside) if beside.is_file() else None
        return cells_of(read_score_file(path), samples if isinstance(samples, SampleFile) else None)
    except EvaluationError as error:
        raise EvaluationError(f"{error}; run again") from error
