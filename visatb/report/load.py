"""A work folder read as far as it has come: whatever is missing is None or left out, and the report says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from eval.answers import AnswerCounts, in_words, safe_name
from eval.collect import PROXIES
from eval.errors import EvaluationError
from eval.files import read_json
from eval.repeats import repeat_name, split_repeat
from eval.scores import Column, SampleFile, ScoreFile, missing_identity, read_scores
from eval.weights import Weights, read_computed
from visatb.experiment.read import load_experiment
from visatb.experiment.schema import Experiment
from visatb.experiment.yaml_lines import ExperimentError
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
from visatb.workdir.results_file import Results
from visatb.workdir.scores import Cell, cells_of
from visatb.workdir.subsets import Subsets
from visatb.workdir.verdict import Comparison, compare, noise_of_proxies

Source = TypeVar("Source")
Content = TypeVar("Content")
Key = tuple[str, str, str]  # split, task, model
Row = dict[str, "float | None"]  # by task


class ReportError(ValueError):
    """A work folder that cannot be reported on; the message names the file and what would mend it."""


@dataclass(frozen=True)
class Run:
    """What a work folder holds. Models and tasks go by their own names, not by those of their files.

    `scores`: metrics in their order; `malformed`: answers that could not be read, and all; `answers`: counts of empty,
    distinct and equal ones, where scores have them; `cards`, `histories`: model → run card, logged numbers by step.
    """

    folder: Path
    experiment: Experiment
    experiment_text: str
    matrix: Matrix | None
    weights: Weights | None
    results: Results | None
    cost: dict[str, ModelCost]
    subsets: Subsets | None
    scores: dict[Key, list[Cell]]
    malformed: dict[Key, tuple[int, int]]
    cards: dict[str, RunCard]
    histories: dict[str, list[dict[str, float]]]
    grouping: Grouping | None = None
    answers: dict[Key, AnswerCounts] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """All tasks in the experiment's order, as far as any file tells."""
        if self.weights:
            return list(self.weights["tasks"])
        if self.results:
            return list(self.results.tasks)
        return list(self.matrix["tasks"]) if self.matrix else sorted({task for _, task, _ in self.scores})

    def model_of(self, method: str, task: str) -> str:
        """The first of the models behind a method's figure on a task: STL has one for each."""
        return self.models_of(method, task)[0]

    def models_of(self, method: str, task: str) -> list[str]:
        """The models behind a method's figures on a task, one for each run; by their names alone without results."""
        return (self.results or Results("EW", [], {}, {})).models_of(method, task)

    def test_cells(self, task: str, method: str) -> list[Cell]:
        """A method's test figures of a task, means over its repeats; empty where one is missing or from outside."""
        runs = [self.scores.get(("test", task, model), []) for model in self.models_of(method, task)]
        return runs[0] if len(runs) == 1 else [_mean_cell(cells) for cells in zip(*runs, strict=False)]

    def matrix_rows(self) -> list[tuple[str, Row, Row]]:
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
                for index in range(max(map(_count, figures.values()), default=0)):
                    rows.append((repeat_name(name, index + 1), _at(figures, index), _at(spread, index)))
        return rows

    def cells(self, task: str, model: str) -> list[Cell]:
        """A model's test figures of a task, empty where there are none."""
        return self.scores.get(("test", task, model), [])

    def deltas(self, method: str) -> tuple[list[float], list[float]]:
        """ΔI% and ΔE% of each run of a method, against the baseline's run of the same seed."""
        return self.results.deltas_by_run(method) if self.results else ([], [])

    def comparisons(self) -> list[Comparison]:
        """All methods against EW and STL; first the one that the headline is about."""
        return compare(self.results, self.cells, noise_of_proxies(self.weights, self.matrix))

    @property
    def methods(self) -> list[str]:
        """The methods with any result, in the results' order."""
        return list(self.results.methods) if self.results else []


def _count(cell: Any) -> int:
    return len(cell) if isinstance(cell, list) else 1


def _at(cells: Mapping[str, Any], index: int) -> Row:
    """One repeat's part of a row of the matrix; where a cell has no list, it is the only one's."""
    pairs = ((task, cell if isinstance(cell, list) else [cell]) for task, cell in cells.items())
    return {task: cell[index] for task, cell in pairs if index < len(cell)}


def _mean_cell(runs: Sequence[Cell]) -> Cell:
    """One metric's figure as the mean over repeats, question by question where all have the same questions.

    Its standard error is then that over questions; without them it is not known what the repeats share.
    """
    first = runs[0]
    alike = all(run.ids == first.ids and run.weights == first.weights for run in runs)
    values = [sum(values) / len(runs) for values in zip(*(run.values for run in runs), strict=True)] if alike else []
    return replace(
        first,
        value=sum(run.value for run in runs) / len(runs),
        stderr=Column(first.metric, "", values, first.weights).stderr() if values else None,
        ids=first.ids if alike else [],
        values=values,
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
    results, cost = _told(Results.read, layout), _told(read_costs, layout)
    scores, malformed, answers = _scores(folder / "scores")
    known = {*cost, *(model for *_, model in scores), *_model_names(weights, results, matrix)}
    names = {safe_name(name): name for name in sorted(known)}
    cards, histories = _trainings(folder / "models", names)
    return Run(
        folder=folder,
        experiment=_experiment(layout.experiment),
        experiment_text=text,
        matrix=matrix,
        weights=weights,
        results=results,
        cost=cost,
        grouping=_told(read_grouping, layout),
        subsets=_told(Subsets.read, layout) if layout.subsets.exists() else None,
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


def _told(read: Callable[[Source], Content], source: Source) -> Content:
    """What a reader reads, its error as a ReportError that says what mends it."""
    try:
        return read(source)
    except EvaluationError as error:
        raise ReportError(f"{error}; remove it and run the experiment again") from error


def _experiment(path: Path) -> Experiment:
    try:
        return load_experiment(path)
    except ExperimentError as error:
        raise ReportError(str(error)) from error


def _weights(path: Path) -> Weights | None:
    return read_computed(path) if path.exists() else None


def _model_names(weights: Weights | None, results: Results | None, matrix: Matrix | None) -> set[str]:
    """Names of models that such files tell of."""
    units: set[str] = set(results.tasks) if results else set()
    if weights:
        units |= {*weights["tasks"], *(weights.get("groups") or {}), *weights["difficulties"]}
    if matrix:
        units |= {*matrix["tasks"], *(matrix.get("groups") or {})}
    kinds = ("plus_mini", "single", "single_mini", "STL")
    methods = results.methods if results else ()
    return {"base", "mini", *methods, *(f"{kind}:{unit}" for kind in kinds for unit in units)}


def _scores(folder: Path) -> tuple[dict[Key, list[Cell]], dict[Key, tuple[int, int]], dict[Key, AnswerCounts]]:
    """Score files with their per-sample values, (malformed, all) answers and their counts."""
    files: dict[Key, ScoreFile] = {}
    samples: dict[Key, SampleFile] = {}
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
    return cells, malformed, {key: file.answers for key, file in files.items() if file.answers}


def _trainings(folder: Path, names: Mapping[str, str]) -> tuple[dict[str, RunCard], dict[str, list[dict[str, float]]]]:
    cards, histories = {}, {}
    for model in sorted(path for path in folder.glob("*") if path.is_dir()):
        if "@" in model.name and model.name not in names:
            continue  # a repeat that the experiment has no longer
        name = names.get(model.name, model.name)
        if card := _told(read_run_card, model):
            cards[name] = card
        if history := _told(_read_history, model / "trainer_state.json"):
            histories[name] = history
    return cards, histories


def _read_history(path: Path) -> list[dict[str, float]]:
    """The finite numbers of what transformers' Trainer logged, a step's each; empty where there is no such file."""
    content = read_json(path, finite=False) if path.is_file() else None
    entries = content.get("log_history") if isinstance(content, dict) else None
    rows = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [{key: float(value) for key, value in row.items() if _is_number(value)} for row in rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
