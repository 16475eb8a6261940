"""A work folder read as far as it has come: whatever is missing is None or left out, and the report says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from eval.answers import in_words, safe_name
from eval.collect import PROXIES
from eval.errors import EvaluationError
from eval.files import read_if_there
from eval.repeats import repeat_name, split_repeat
from eval.scores import SampleFile, ScoreFile, missing_identity, read_scores
from eval.weights import Weights, read_computed
from visatb.workdir.changes import deltas_by_run, models_of
from visatb.workdir.contents import (
    Grouping,
    Matrix,
    ModelCost,
    RunCard,
    read_costs,
    read_grouping,
    read_matrix,
    read_run_card,
)
from visatb.workdir.layout import Layout
from visatb.workdir.scores import Cell, cells_of
from visatb.workdir.verdict import Comparison, compare, noise_of_proxies

Place = TypeVar("Place")
Content = TypeVar("Content")


class ReportError(ValueError):
    """A work folder that cannot be reported on; the message names the file and what would mend it."""


@dataclass(frozen=True)
class Run:
    """What a work folder holds. Models and tasks go by their own names, not by those of their files.

    `scores`: (split, task, model) → metrics in their order; `answers`: → counts of empty, distinct and equal ones,
    where scores have them; `cards`, `histories`: model → run card, logged steps.
    """

    folder: Path
    experiment: dict[str, Any]
    experiment_text: str
    matrix: Matrix | None
    weights: Weights | None
    results: dict[str, Any] | None
    cost: dict[str, ModelCost]
    subsets: dict[str, Any] | None
    scores: dict[tuple[str, str, str], list[Cell]]
    malformed: dict[tuple[str, str, str], tuple[int, int]]
    cards: dict[str, RunCard]
    histories: dict[str, list[dict[str, Any]]]
    grouping: Grouping | None = None
    answers: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """All tasks in the experiment's order, as far as any file tells."""
        for source in (self.weights, self.results, self.matrix):
            if source:
                return list(source["tasks"])
        return sorted({task for _, task, _ in self.scores})

    def model_of(self, method: str, task: str) -> str:
        """The first of the models behind a method's figure on a task: STL has one for each."""
        return models_of(self.results or {}, method, task)[0]

    def test_cells(self, task: str, method: str) -> list[Cell]:
        """A method's test figures of a task, means over its repeats; empty where one is missing or from outside."""
        runs = [self.scores.get(("test", task, model), []) for model in models_of(self.results or {}, method, task)]
        return runs[0] if len(runs) == 1 else [_mean_cell(cells) for cells in zip(*runs, strict=False)]

    def matrix_rows(self) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """The validation matrix by model: its name, and figures and standard errors by task; a row for each repeat."""
        rows = []
        matrix: Mapping[str, Any] = self.matrix or {}
        errors = matrix.get("stderr") or {}
        for kind in ("base", "mini", "plus_mini", "single", "single_mini"):
            entry, spreads = matrix.get(kind) or {}, errors.get(kind) or {}
            nested = all(isinstance(value, Mapping) for value in entry.values())
            for unit, figures in entry.items() if nested else [("", entry)]:
                spread = spreads.get(unit, {}) if nested else spreads
                name = f"{kind}:{unit}" if unit else kind
                for place in range(max(map(_count, figures.values()), default=0)):
                    rows.append((repeat_name(name, place + 1), _at(figures, place), _at(spread, place)))
        return rows

    def cells(self, task: str, model: str) -> list[Cell]:
        """A model's test figures of a task, empty where there are none."""
        return self.scores.get(("test", task, model), [])

    def deltas(self, method: str) -> tuple[list[float], list[float]]:
        """ΔI% and ΔE% of each run of a method, against the baseline's run of the same seed."""
        return deltas_by_run(self.results, method) if self.results else ([], [])

    def comparisons(self) -> list[Comparison]:
        """All methods against EW and STL; first the one that the headline is about."""
        return compare(self.results, self.cells, noise_of_proxies(self.weights, self.matrix))

    @property
    def methods(self) -> list[str]:
        """The methods with any result, in the results' order."""
        return list(self.results["methods"]) if self.results else []


def _count(cell: Any) -> int:
    return len(cell) if isinstance(cell, list) else 1


def _at(cells: Mapping[str, Any], place: int) -> dict[str, Any]:
    """One repeat's part of a row of the matrix; where a cell has no list, it is the only one's."""
    pairs = ((task, cell if isinstance(cell, list) else [cell]) for task, cell in cells.items())
    return {task: cell[place] for task, cell in pairs if place < len(cell)}


def _mean_cell(runs: Sequence[Cell]) -> Cell:
    """One metric's figure as the mean over repeats, question by question where all have the same questions."""
    first = runs[0]
    alike = all(run.ids == first.ids and run.weights == first.weights for run in runs)
    return replace(
        first,
        value=sum(run.value for run in runs) / len(runs),
        stderr=None,
        ids=first.ids if alike else [],
        values=[sum(values) / len(runs) for values in zip(*(run.values for run in runs), strict=True)] if alike else [],
        weights=first.weights if alike else [],
    )


def is_proxy(model: str) -> bool:
    """Whether a model only serves to measure the weights."""
    return split_repeat(model)[0].partition(":")[0] in PROXIES


def load(folder: Path) -> Run:
    """Read a work folder; ReportError where it is none, or a file in it is broken."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such work folder")
    layout = Layout(folder)
    text = _text(layout.experiment)
    if text is None:
        raise ReportError(f"{folder}: no experiment.yaml in it; is this the work folder of `visatb run`?")
    matrix, weights = _told(read_matrix, layout), _told(_weights, layout.weights)
    results = _object(layout.results, ("tasks", "metrics", "methods"))
    cost = _told(read_costs, layout)
    scores, malformed, answers = _scores(folder / "scores")
    known = {*cost, *(model for _, _, model in scores)}
    for source in (weights, results, matrix):
        known |= _model_names(source or {})
    names = {safe_name(name): name for name in sorted(known)}
    cards, histories = _trainings(folder / "models", names)
    return Run(
        folder=folder,
        experiment=_experiment(layout.experiment, text),
        experiment_text=text,
        matrix=matrix,
        weights=weights,
        results=results,
        cost=cost,
        grouping=_told(read_grouping, layout),
        subsets=_object(layout.subsets),
        scores=scores,
        malformed=malformed,
        cards=cards,
        histories=histories,
        answers=answers,
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read ({error})") from error


def _told(read: Callable[[Place], Content], place: Place) -> Content:
    """What a reader reads, its error as a ReportError that says what mends it."""
    try:
        return read(place)
    except EvaluationError as error:
        raise ReportError(f"{error}; remove it and run the experiment again") from error


def _object(path: Path, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    return _told(partial(read_if_there, needed=needed), path)


def _experiment(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReportError(f"{path}: not valid YAML ({error})") from error
    return content if isinstance(content, dict) else {}


def _weights(path: Path) -> Weights | None:
    return read_computed(path) if path.exists() else None


def _model_names(source: Mapping[str, Any]) -> set[str]:
    tasks = [str(task) for task in source.get("tasks", [])]
    units = {*tasks, *source.get("groups", {}), *source.get("difficulties", {})}
    kinds = ("plus_mini", "single", "single_mini", "STL")
    return {"base", "mini", *source.get("methods", {}), *(f"{kind}:{unit}" for kind in kinds for unit in units)}


def _scores(
    folder: Path,
) -> tuple[
    dict[tuple[str, str, str], list[Cell]],
    dict[tuple[str, str, str], tuple[int, int]],
    dict[tuple[str, str, str], dict[str, Any]],
]:
    """Score files with their per-sample values, (malformed, all) answers and their counts, by (split, task, model)."""
    files: dict[tuple[str, str, str], ScoreFile] = {}
    samples: dict[tuple[str, str, str], SampleFile] = {}
    for path in sorted(folder.rglob("*.json")):
        found = _told(read_scores, path)
        if found is None or (missing := missing_identity(found)):
            lacks = "what a score file holds" if found is None else in_words(missing)
            raise ReportError(f"{path}: lacks {lacks}; remove it and run the experiment again")
        key = found.split, found.task, found.model
        if isinstance(found, SampleFile):
            samples[key] = found
        else:
            files[key] = found
    cells = {key: cells_of(file, samples.get(key)) for key, file in files.items()}
    malformed = {key: (file.num_malformed, file.num_samples) for key, file in files.items()}
    return cells, malformed, {key: dict(file.answers) for key, file in files.items() if file.answers}


def _trainings(folder: Path, names: Mapping[str, str]) -> tuple[dict[str, RunCard], dict[str, list[dict[str, Any]]]]:
    cards, histories = {}, {}
    for model in sorted(path for path in folder.glob("*") if path.is_dir()):
        if "@" in model.name and model.name not in names:
            continue  # a repeat that the experiment has no longer
        name = names.get(model.name, model.name)
        card = _told(read_run_card, model)
        state = _object(model / "trainer_state.json")
        if card:
            cards[name] = card
        if state and isinstance(state.get("log_history"), list):
            histories[name] = [entry for entry in state["log_history"] if isinstance(entry, dict)]
    return cards, histories
