"""What each model is trained on: subsets drawn once, written once, and listed in `data/subsets.json`.

The rates are the same for all tasks and relative to a task's whole training data. A task's mini subset lies in its
large one: both are the first records of one seeded permutation. A model that is trained again has subsets of its own,
drawn with the next seed, unless `repeats.redraw` is off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import read_json, write_json
from visatb.experiment import records
from visatb.experiment.models import ModelJob, Size, models
from visatb.experiment.names import SPLITS, Split
from visatb.experiment.schema import Experiment, round_to_count
from visatb.workdir.layout import Layout


@dataclass(frozen=True)
class QuestionFile:
    """A split's questions of one task: the file (an absolute path) and how many they are."""

    file: str
    count: int


@dataclass(frozen=True)
class TrainingData:
    """A model's training data: each task's files (absolute paths), records and size, and the sum of the records.

    `seed` is what its subsets were drawn with; older files do not say it.
    """

    files: Mapping[str, Sequence[str]]
    counts: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, Size] = field(default_factory=dict)
    samples: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Subsets:
    """The content of `data/subsets.json`.

    Files of the work folder stand there relative to it, so that it can be moved and copied; the user's are absolute.

    Attributes:
        seed, rates: what the subsets of first trainings were drawn with; rates by size.
        tasks: each task's records by size.
        questions: split → task → its questions, of those that some model answers.
        models: each model's training data.
    """

    seed: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[Size, int]] = field(default_factory=dict)
    questions: Mapping[Split, Mapping[str, QuestionFile]] = field(
        default_factory=lambda: {split: {} for split in SPLITS}
    )
    models: Mapping[str, TrainingData] = field(default_factory=dict)

    @property
    def whole(self) -> int:
        """The number of all training records."""
        return sum(sizes["whole"] for sizes in self.tasks.values())

    def question_files(self, model: ModelJob, split: Split) -> list[str]:
        """The files of the questions that a model answers, in the order of its tasks."""
        return [self.questions[split][task].file for task in model.asked[split]]

    @classmethod
    def read(cls, layout: Layout) -> Subsets:
        """The list of a work folder; EvaluationError if it is missing or damaged."""
        content = read_json(layout.subsets)

        def absolute(files: Iterable[str]) -> list[str]:
            return [os.path.join(layout.root, file) for file in files]

        try:
            return cls(
                seed=content["seed"],
                rates=content["rates"],
                tasks=content["tasks"],
                questions={
                    split: {
                        task: QuestionFile(absolute([entry["file"]])[0], entry["count"])
                        for task, entry in content["questions"].get(split, {}).items()
                    }
                    for split in SPLITS
                },
                models={
                    name: TrainingData(
                        {task: absolute(files) for task, files in entry["files"].items()},
                        entry["counts"],
                        entry["sizes"],
                        entry["samples"],
                        entry.get("seed"),
                    )
                    for name, entry in content["models"].items()
                },
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{layout.subsets} is damaged: remove it and run again") from error

    def write(self, layout: Layout) -> None:
        """Write the list of a work folder."""
        write_json(layout.subsets, self.as_json(layout))

    def as_json(self, layout: Layout) -> dict[str, Any]:
        """The list as it stands in the file."""
        return {
            "seed": self.seed,
            "rates": self.rates,
            "tasks": self.tasks,
            "questions": {
                split: {
                    task: {"file": _noted(layout, questions.file), "count": questions.count}
                    for task, questions in of_split.items()
                }
                for split, of_split in self.questions.items()
                if of_split or split != "guard"  # which few experiments have
            },
            "models": {
                name: {
                    "samples": data.samples,
                    "counts": data.counts,
                    "sizes": data.sizes,
                    **({} if data.seed is None else {"seed": data.seed}),
                    "files": {task: [_noted(layout, file) for file in files] for task, files in data.files.items()},
                }
                for name, data in self.models.items()
            },
        }


def _noted(layout: Layout, file: str) -> str:
    """A file as it stands in the list."""
    return os.path.relpath(file, layout.root) if Path(file).is_relative_to(layout.root) else file


@dataclass(frozen=True)
class Counts:
    """How many records there are: of each task by size, and of each split's questions (0: none)."""

    train: dict[str, dict[Size, int]]
    questions: dict[Split, dict[str, int]]

    def samples(self, model: ModelJob) -> int:
        """The number of a model's training samples."""
        return sum(self.train[task][size] for task, size in model.data)

    def asked(self, model: ModelJob, split: Split) -> int:
        """The number of questions of a split that a model answers."""
        return sum(self.questions[split][task] for task in model.asked[split])


def counts(experiment: Experiment, count: Callable[[list[str]], int] = records.count) -> Counts:
    """Count all records (`count` says how); DataError where a file is missing or broken."""
    train: dict[str, dict[Size, int]] = {}
    questions: dict[Split, dict[str, int]] = {split: {} for split in SPLITS}
    for name, task in experiment.tasks.items():
        total = count(task.train)
        sizes = {"mini": experiment.subsets.mini, "large": experiment.subsets.large}
        train[name] = {"whole": total}
        train[name] |= {size: round_to_count(rate, total) for size, rate in sizes.items()}  # type: ignore[misc]
    for split in SPLITS:
        for name in experiment.guards if split == "guard" else experiment.tasks:
            file = experiment.questions(name, split)
            there = count([file]) if file else 0
            limit = experiment.max_val_samples if split != "test" else None
            questions[split][name] = min(there, limit or there)
    return Counts(train, questions)


def files_of(experiment: Experiment, layout: Layout, task: str, size: Size, count: int, repeat: int = 1) -> list[str]:
    """The files of a task's data of that size, for that repeat of a training; the user's own where it is the whole."""
    if size == "whole" or (size == "large" and experiment.subsets.large == 1):
        return list(experiment.tasks[task].train)
    return [str(layout.subset(task, size, count, experiment.draw(repeat)))]


def write_subsets(experiment: Experiment, layout: Layout) -> None:
    """Write the subsets and the questions that the models need, then the list of them; DataError for bad data."""
    found = counts(experiment)
    wanted = models(experiment)
    keep = {layout.subsets}
    for task, size, repeat in dict.fromkeys((*part, model.repeat) for model in wanted for part in model.data):
        count = found.train[task][size]
        for file in map(Path, files_of(experiment, layout, task, size, count, repeat)):
            if file.parent == layout.data and file not in keep:
                indices = records.chosen(task, found.train[task]["whole"], count, experiment.subsets_seed(repeat))
                records.write_records(file, records.pick(experiment.tasks[task].train, indices, task))
                keep.add(file)
    for split in SPLITS:
        for task in dict.fromkeys(name for model in wanted for name in model.asked[split]):
            count = found.questions[split][task]
            path = layout.questions(task, split, count)
            _write_questions(experiment, path, task, split, count)
            keep.add(path)
    _remove_others(layout, keep)
    _listed(experiment, layout, found, wanted).write(layout)


def _write_questions(experiment: Experiment, path: Path, task: str, split: Split, count: int) -> None:
    file = experiment.questions(task, split)
    assert file is not None
    indices = records.chosen(f"{task} {split}", records.count([file]), count, experiment.subsets.seed)
    records.write_records(path, records.pick([file], indices, task))


def _remove_others(layout: Layout, keep: Iterable[Path]) -> None:
    """Subsets of earlier settings."""
    kept = set(keep)
    for folder in (layout.data, *(layout.question_folder(split) for split in SPLITS)):
        for file in folder.glob("*.json"):
            if file not in kept:
                file.unlink()


def _listed(experiment: Experiment, layout: Layout, found: Counts, wanted: list[ModelJob]) -> Subsets:
    """The list of what has been written."""
    rates = experiment.subsets
    asked = {split: {task for model in wanted for task in model.asked[split]} for split in SPLITS}
    return Subsets(
        rates.seed,
        {"large": rates.large, "mini": rates.mini},
        found.train,
        {
            split: {
                task: QuestionFile(str(layout.questions(task, split, count)), count)
                for task, count in found.questions[split].items()
                if task in asked[split]
            }
            for split in SPLITS
        },
        {
            model.name: TrainingData(
                {
                    task: files_of(experiment, layout, task, size, found.train[task][size], model.repeat)
                    for task, size in model.data
                },
                {task: found.train[task][size] for task, size in model.data},
                dict(model.data),
                found.samples(model),
                experiment.subsets_seed(model.repeat),
            )
            for model in wanted
        },
    )
