"""What each model is trained on: subsets drawn once, written once, and listed in `data/subsets.json`.

The rates are the same for all tasks and relative to a task's whole training data. A task's mini subset lies in its
large one: both are the first records of one seeded permutation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.core import read_json, write_json
from visatb.experiment import records
from visatb.experiment.models import ModelJob, Size, models
from visatb.experiment.schema import Experiment, round_to_count
from visatb.workdir.layout import SPLITS, Layout


@dataclass(frozen=True)
class Counts:
    """How many records there are: of each task by size, and of each split's questions (0: none)."""

    train: dict[str, dict[Size, int]]
    questions: dict[str, dict[str, int]]

    def samples(self, model: ModelJob) -> int:
        """The number of a model's training samples."""
        return sum(self.train[task][size] for task, size in model.data)

    def asked(self, model: ModelJob, split: str) -> int:
        """The number of questions of a split that a model answers."""
        return sum(self.questions[split][task] for task in getattr(model, split))


def counts(experiment: Experiment, count: Callable[[list[str]], int] = records.count) -> Counts:
    """Count all records (`count` says how); DataError where a file is missing or broken."""
    train: dict[str, dict[Size, int]] = {}
    questions: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for name, task in experiment.tasks.items():
        total = count(task.train)
        sizes = {"mini": experiment.subsets.mini, "large": experiment.subsets.large}
        train[name] = {"whole": total}
        train[name] |= {size: round_to_count(rate, total) for size, rate in sizes.items()}  # type: ignore[misc]
        for split in SPLITS:
            file = getattr(task, split)
            there = count([file]) if file else 0
            limit = experiment.max_val_samples if split == "val" else None
            questions[split][name] = min(there, limit or there)
    return Counts(train, questions)


def files_of(experiment: Experiment, layout: Layout, task: str, size: Size, count: int) -> list[str]:
    """The files of a task's data of that size; the user's own where it is the whole."""
    if size == "whole" or (size == "large" and experiment.subsets.large == 1):
        return list(experiment.tasks[task].train)
    return [str(layout.subset(task, size, count))]


def write_subsets(experiment: Experiment, layout: Layout) -> None:
    """Write the subsets and the questions that the models need, then the list of them; DataError for bad data."""
    found = counts(experiment)
    wanted = models(experiment)
    keep = {layout.subsets}
    for task, size in dict.fromkeys(part for model in wanted for part in model.data):
        count = found.train[task][size]
        for file in files_of(experiment, layout, task, size, count):
            if Path(file).parent == layout.data:
                _write_subset(experiment, Path(file), task, count, found.train[task]["whole"])
                keep.add(Path(file))
    for split in SPLITS:
        for task in dict.fromkeys(name for model in wanted for name in getattr(model, split)):
            path = layout.questions(task, split, found.questions[split][task])
            _write_questions(experiment, path, task, split, found.questions[split][task])
            keep.add(path)
    _remove_others(layout, keep)
    write_json(layout.subsets, _listing(experiment, layout, found, wanted))


def read_listing(layout: Layout) -> dict[str, Any]:
    """The content of `data/subsets.json`, its files as absolute paths; EvaluationError if missing or damaged.

    Files of the work folder stand there relative to it, so that it can be moved and copied; the user's are absolute.
    """
    listing: dict[str, Any] = read_json(layout.subsets)
    for questions in (entry for of_split in listing["questions"].values() for entry in of_split.values()):
        questions["file"] = os.path.join(layout.root, questions["file"])
    for model in listing["models"].values():
        files = model["files"].items()
        model["files"] = {task: [os.path.join(layout.root, file) for file in of_task] for task, of_task in files}
    return listing


def _noted(layout: Layout, file: str | Path) -> str:
    """A file as it stands in the list: see `read_listing`."""
    path = Path(file)
    return str(path.relative_to(layout.root) if path.is_relative_to(layout.root) else path)


def _write_subset(experiment: Experiment, path: Path, task: str, count: int, total: int) -> None:
    places = records.chosen(task, total, count, experiment.subsets.seed)
    records.write_records(path, records.pick(experiment.tasks[task].train, places, task))


def _write_questions(experiment: Experiment, path: Path, task: str, split: str, count: int) -> None:
    file = getattr(experiment.tasks[task], split)
    total = records.count([file])
    places = records.chosen(f"{task} {split}", total, count, experiment.subsets.seed)
    records.write_records(path, records.pick([file], places, task))


def _remove_others(layout: Layout, keep: Iterable[Path]) -> None:
    """Subsets of earlier settings."""
    kept = set(keep)
    for folder in (layout.data, *(layout.question_folder(split) for split in SPLITS)):
        for file in folder.glob("*.json"):
            if file not in kept:
                file.unlink()


def _listing(experiment: Experiment, layout: Layout, found: Counts, wanted: list[ModelJob]) -> dict[str, Any]:
    subsets = experiment.subsets
    return {
        "seed": subsets.seed,
        "rates": {"large": subsets.large, "mini": subsets.mini},
        "tasks": found.train,
        "questions": {
            split: {
                task: {"file": _noted(layout, layout.questions(task, split, count)), "count": count}
                for task, count in found.questions[split].items()
                if any(task in getattr(model, split) for model in wanted)
            }
            for split in SPLITS
        },
        "models": {
            model.name: {
                "samples": found.samples(model),
                "counts": {task: found.train[task][size] for task, size in model.data},
                "sizes": dict(model.data),
                "files": {
                    task: [
                        _noted(layout, file)
                        for file in files_of(experiment, layout, task, size, found.train[task][size])
                    ]
                    for task, size in model.data
                },
            }
            for model in wanted
        },
    }
