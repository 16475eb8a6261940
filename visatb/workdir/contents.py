"""What the files of a work folder hold that other commands write, or that come from several steps: one reader each.

All readers return None (or nothing) where there is no such file yet, and raise EvaluationError where it is broken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, cast

from eval.files import read_if_there
from llava.train.marks import CARD
from visatb.workdir.layout import Layout

Cells = dict[str, Any]
"""Task → a figure, or a list with one figure for each training of the model."""


class _Tasks(TypedDict):
    tasks: list[str]


class Matrix(_Tasks, total=False):
    """The validation matrix: figures by kind of proxy (and unit) and task; `stderr` of the same shape."""

    groups: dict[str, list[str]]
    higher_is_better: dict[str, bool]
    num_samples: dict[str, int]
    base: Cells
    mini: Cells
    plus_mini: dict[str, Cells]
    single: dict[str, Cells]
    single_mini: Cells
    stderr: dict[str, Any]
    answers: dict[str, Any]


class Grouping(TypedDict):
    """What `groups: auto` found (`visatb.experiment.groups.group_tasks`)."""

    asked: int | str
    tasks: list[str]
    tree: list[list[float]]
    silhouettes: dict[str, float]
    groups: dict[str, list[str]]


class RunCard(TypedDict, total=False):
    """What the train command says of a finished model (`llava.train.run_card`)."""

    arguments: dict[str, Any]
    settings: dict[str, Any]
    tasks: list[str]
    weight_method: str
    weights: dict[str, float]
    data: list[dict[str, Any]]
    samples: int
    steps: int
    global_batch_size: int
    versions: dict[str, str | None]
    hardware: dict[str, Any]
    git: dict[str, Any] | None


class ModelCost(TypedDict, total=False):
    """What a model took."""

    train_seconds: float
    infer_seconds: float
    samples: int
    questions: int
    steps: int
    device: str


def read_matrix(layout: Layout) -> Matrix | None:
    """`matrix.json`."""
    return cast("Matrix | None", read_if_there(layout.matrix, ("tasks",)))


def read_grouping(layout: Layout) -> Grouping | None:
    """`grouping.json`."""
    return cast("Grouping | None", read_if_there(layout.grouping, Grouping.__annotations__))


def read_run_card(model: Path) -> RunCard | None:
    """`run_card.json` of a model's folder."""
    return cast("RunCard | None", read_if_there(model / CARD))


def read_costs(layout: Layout) -> dict[str, ModelCost]:
    """`cost.json`: of each model."""
    content = read_if_there(layout.cost) or {}
    return {model: cast(ModelCost, entry) for model, entry in content.items() if isinstance(entry, dict)}
