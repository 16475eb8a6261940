"""A score file and its per-sample values as cells: one metric of one model on one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.errors import EvaluationError
from eval.files import read_json
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


def read_cell(entry: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Cell:
    """A cell from an entry of a score file's `scores` and the `samples` of its per-sample file (none: empty).

    LookupError, TypeError or ValueError where they are of another form.
    """
    metric, stderr = str(entry["metric"]), entry.get("stderr")
    there = all(metric in sample["values"] for sample in samples)
    kept = samples if there else []
    return Cell(
        metric=metric,
        value=float(entry["value"]),
        stderr=None if stderr is None else float(stderr),
        higher_is_better=bool(entry.get("higher_is_better", True)),
        ids=[str(sample["id"]) for sample in kept],
        values=[float(sample["values"][metric]) for sample in kept],
        weights=[float(sample.get("weights", {}).get(metric, 1.0)) for sample in kept],
    )


def read_cells(layout: Layout, task: str, model: str) -> list[Cell]:
    """A model's test figures of a task, in the order of its metrics; empty where its score is not of our making.

    Raises:
        EvaluationError: a file is damaged.
    """
    path, samples = layout.score("test", task, model), layout.per_sample("test", task, model)
    if not path.is_file():
        return []
    kept = read_json(samples).get("samples", []) if samples.is_file() else []
    try:
        return [read_cell(entry, kept) for entry in read_json(path)["scores"]]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path}: not a score file ({type(error).__name__}: {error}); run again") from error
