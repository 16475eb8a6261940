"""Validation and test questions that are training data, too: figures on them would not be of unseen data.

A question is the same where its text and its images are; a training record asks one in each of its human turns. An
image is the same where its path is, or its file's content: a copy under another name is found, one that was scaled or
saved anew is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.records import image_paths, read_records, record_name
from visatb.experiment.names import SPLITS
from visatb.experiment.schema import Experiment
from visatb.workflow.copies import copies

Question = tuple[tuple[str, ...], str]
"""Paths of its images, and its text without image marks and repeated blanks."""


@dataclass
class _Asked:
    """One question file: each question with its record's name, and what of it training data hold."""

    task: str
    split: str
    file: str
    questions: list[tuple[Question, str]] = field(default_factory=list)


@dataclass
class _Trained:
    """What training data hold of all that is asked, and every image of theirs."""

    questions: set[Question] = field(default_factory=set)
    images: set[str] = field(default_factory=set)


def overlaps(experiment: Experiment) -> Iterator[tuple[str, bool]]:
    """One text for each question file that shares questions or images with training data, and whether it is fatal.

    It is where every question is a training question, of whichever task. Files that are not there are passed over.
    """
    files = [
        _Asked(name, split, file)
        for split in SPLITS
        for name in (experiment.guards if split == "guard" else experiment.tasks)
        if (file := experiment.questions(name, split)) and Path(file).is_file()
    ]
    for asked in files:
        for raw in read_records(asked.file):
            asked.questions += [(question, record_name(raw.content, raw.position)) for question in _asks(raw.content)]
    pictures = {path for asked in files for (paths, _), _ in asked.questions for path in paths}
    trained = _trained(experiment, files, {})
    same = copies(pictures, trained.images, experiment.image_folder)
    if same:  # the training data are read again only where there are copies
        for asked in files:
            asked.questions = [(_renamed(question, same), name) for question, name in asked.questions]
        trained = _trained(experiment, files, same)
    for asked in files:
        yield from _texts(asked, trained, same)


def _trained(experiment: Experiment, files: list[_Asked], same: Mapping[str, str]) -> _Trained:
    wanted = {question for asked in files for question, _ in asked.questions}
    found = _Trained()
    for task in experiment.tasks.values():
        for file in filter(os.path.isfile, task.train):
            for raw in read_records(file):
                questions = {_renamed(question, same) for question in _asks(raw.content)}
                found.questions |= questions & wanted
                found.images.update(path for paths, _ in questions for path in paths)
    return found


def _texts(asked: _Asked, trained: _Trained, same: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    where = f"{asked.file}: task {asked.task}, {asked.split}"
    total = len(asked.questions)
    repeated = [name for question, name in asked.questions if question in trained.questions]
    if repeated:
        count = f"all {total}" if len(repeated) == total else f"{len(repeated)} of {total}"
        yield (
            f"{where}: {count} questions are training questions, too (same text and images; record {repeated[0]}, "
            "say): figures on them are not of unseen data; keep them out of one of the two",
            len(repeated) == total,
        )
    shared = [(name, path) for (paths, _), name in asked.questions if (path := _first(paths, trained.images))]
    if len(shared) > len(repeated):
        name, path = shared[0]
        others = sorted({path, *(copy for copy, kept in same.items() if kept == path)})
        named = f"; {' and '.join(others[:2])} are one image under different names" if len(others) > 1 else ""
        yield (
            f"{where}: {len(shared)} of {total} questions are about images that training data hold, too "
            f"(record {name}, say{named})",
            False,
        )


def _first(paths: tuple[str, ...], images: set[str]) -> str | None:
    return next((path for path in paths if path in images), None)


def _renamed(question: Question, same: Mapping[str, str]) -> Question:
    paths, text = question
    return tuple(same.get(path, path) for path in paths), text


def _asks(content: Any) -> Iterator[Question]:
    """The questions of a record; none of one that is no record, which others report."""
    if not isinstance(content, dict) or not isinstance(content.get("conversations"), list):
        return
    paths = tuple(map(os.path.normpath, image_paths(content)))
    for turn in content["conversations"]:
        if isinstance(turn, dict) and turn.get("from") in ("human", "user") and isinstance(turn.get("value"), str):
            yield paths, " ".join(turn["value"].replace(DEFAULT_IMAGE_TOKEN, " ").split())
