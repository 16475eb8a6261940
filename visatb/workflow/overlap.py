"""Validation and test questions that are training data, too: figures on them would not be of unseen data.

A question is the same where its text and its images' paths are; a training record asks one in each of its human turns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.records import read_records, record_name
from visatb.experiment.names import SPLITS
from visatb.experiment.schema import Experiment

Question = tuple[tuple[str, ...], str]
"""Paths of its images, and its text without image marks and repeated blanks."""


@dataclass
class _Asked:
    """One question file: each question with its record's name, and what of it training data hold."""

    task: str
    split: str
    file: str
    questions: list[tuple[Question, str]] = field(default_factory=list)


def overlaps(experiment: Experiment) -> Iterator[tuple[str, bool]]:
    """One text for each question file that shares questions or images with training data, and whether it is fatal.

    It is where every question is a training question, of whichever task. Files that are not there are passed over.
    """
    files = [
        _Asked(name, split, file)
        for split in SPLITS
        for name, task in experiment.tasks.items()
        if (file := task.questions[split]) and Path(file).is_file()
    ]
    for asked in files:
        for raw in read_records(asked.file):
            asked.questions += [(question, record_name(raw.content, raw.position)) for question in _asks(raw.content)]
    wanted = {question for asked in files for question, _ in asked.questions}
    pictures = {path for paths, _ in wanted for path in paths}
    seen: set[Question] = set()
    seen_pictures: set[str] = set()
    for task in experiment.tasks.values():
        for file in filter(os.path.isfile, task.train):
            for raw in read_records(file):
                questions = set(_asks(raw.content))
                seen |= questions & wanted
                seen_pictures |= {path for paths, _ in questions for path in paths} & pictures
    for asked in files:
        yield from _texts(asked, seen, seen_pictures)


def _texts(asked: _Asked, seen: set[Question], pictures: set[str]) -> Iterator[tuple[str, bool]]:
    place = f"{asked.file}: task {asked.task}, {asked.split}"
    total = len(asked.questions)
    same = [name for question, name in asked.questions if question in seen]
    if same:
        count = f"all {total}" if len(same) == total else f"{len(same)} of {total}"
        yield (
            f"{place}: {count} questions are training questions, too (same text and images; record {same[0]}, say): "
            "figures on them are not of unseen data; keep them out of one of the two",
            len(same) == total,
        )
    shared = [name for (paths, _), name in asked.questions if any(path in pictures for path in paths)]
    if len(shared) > len(same):
        yield (
            f"{place}: {len(shared)} of {total} questions are about images that training data hold, too "
            f"(record {shared[0]}, say)",
            False,
        )


def _asks(content: Any) -> Iterator[Question]:
    """The questions of a record; none of one that is no record, which others report."""
    if not isinstance(content, dict) or not isinstance(content.get("conversations"), list):
        return
    image = content.get("image")
    names = image if isinstance(image, list) else [image]
    paths = tuple(os.path.normpath(name) for name in names if isinstance(name, str))
    for turn in content["conversations"]:
        if isinstance(turn, dict) and turn.get("from") in ("human", "user") and isinstance(turn.get("value"), str):
            yield paths, " ".join(turn["value"].replace(DEFAULT_IMAGE_TOKEN, " ").split())
