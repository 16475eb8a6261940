"""Writing task files one record at a time, and drawing seeded samples of what passes by.

Task files are named `{task}_{split}-{size}.json`, the size being the exact number of records.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.files import move_into_place, write_records
from llava.data.records import record_images
from visatb.experiment.records import permutation
from visatb.prepare.source import PrepareError, Record, Summary

Item = TypeVar("Item")

IMAGES = "images"
_MASK = (1 << 64) - 1


@dataclass
class Output:
    """Where a preparation writes, and how: `images` is the folder that records' images are relative to.

    `drop_missing` leaves out records whose images are not there; they are counted either way.
    """

    folder: Path
    images: Path
    seed: int = 0
    drop_missing: bool = False
    summaries: list[Summary] = field(default_factory=list)

    def has(self, image: str) -> bool:
        """Whether an image is there."""
        return (self.images / image).is_file()

    def write(self, task: str, split: str, records: Iterable[Record]) -> Summary:
        """Write a task's split; PrepareError where nothing is in it."""
        unnamed = self.folder / f".{task}_{split}"  # until its records are counted
        tally = Tally(task, split)
        write_records(unnamed, ({**record, "task": task} for record in self._kept(records, tally)))
        if not tally.samples:
            gone = f" ({tally.missing} records without their image were left out)" if tally.missing else ""
            raise PrepareError(f"task {task}: nothing to put into {split}{gone}")
        name = f"{task}_{split}-{tally.samples}.json"
        move_into_place(unnamed, self.folder / name)
        self.summaries.append(tally.summary(name))
        return self.summaries[-1]

    def _kept(self, records: Iterable[Record], tally: Tally) -> Iterator[Record]:
        for record in records:
            absent = sum(not self.has(image) for image in record_images(record))
            tally.missing += absent
            if not (absent and self.drop_missing):
                tally.add(record)
                yield record

    def draw(self, total: int, size: int, name: str) -> NDArray[np.bool_]:
        """bool[total], true at `size` places (all, where there are no more), drawn by the seed and `name`."""
        chosen = np.zeros(total, dtype=np.bool_)
        chosen[permutation(name, total, self.seed)[: max(0, size)]] = True
        return chosen

    def parts(self, total: int, sizes: Sequence[int], name: str) -> NDArray[np.int8]:
        """int8[total]: the part (0, 1, … by `sizes`, then the rest) that each place falls in, drawn as by `draw`."""
        places = permutation(name, total, self.seed)
        part = np.full(total, len(sizes), dtype=np.int8)
        for number, (start, size) in enumerate(zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)):
            part[places[start : start + size]] = number
        return part


@dataclass
class Tally:
    """Running counts of one file; distinct images by 8-byte hashes, so that a million of them take 8 MB."""

    task: str
    split: str
    samples: int = 0
    turns: int = 0
    words: int = 0
    missing: int = 0
    images: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, record: Record) -> None:
        """Count a record; of several references, the first gives the length."""
        self.samples += 1
        for turn in record["conversations"]:
            if turn["from"] == "gpt":
                self.turns += 1
                answer = turn.get("value") or ""
                self.words += len((answer if isinstance(answer, str) else answer[0]).split())
        self.images.extend(hash(image) & _MASK for image in record_images(record))

    def summary(self, file: str) -> Summary:
        """The counts as the table shows them."""
        distinct = len(np.unique(np.frombuffer(self.images, dtype=np.uint64))) if self.images else 0
        mean = self.words / max(self.turns, 1)
        return Summary(self.task, self.split, file, self.samples, self.turns, distinct, mean, self.missing)


def pick(items: Iterable[Item], chosen: NDArray[Any]) -> Iterator[Item]:
    """The items at the true places of `chosen`."""
    return (item for item, take in zip(items, chosen, strict=True) if take)


def count(items: Iterable[Any]) -> int:
    """How many there are, holding one at a time."""
    return sum(1 for _ in items)


def link_images(folder: Path, source: Path) -> None:
    """`folder/images` → the source: images stay where they are, records name them relative to the source."""
    (folder / IMAGES).symlink_to(source.resolve(), target_is_directory=True)


def experiment_file(name: str, folder: Path, output: Path, summaries: Sequence[Summary]) -> Path | None:
    """Write `{name}.yaml`, the shipped experiment with the files as they are named here; None without a checkout.

    `folder` is where it is written now, `output` where it will lie: its relative paths keep pointing into the checkout.
    """
    template = Path(__file__).parents[2] / "examples" / f"{name}.yaml"
    if not template.is_file():
        return None
    text = template.read_text(encoding="utf-8")
    for row in summaries:
        pattern = rf"(?<![\w-]){re.escape(row.task)}_{row.split}-[\w.]+\.json"
        text = re.sub(pattern, row.file, text)
    text = re.sub(r"(?m)^data_folder:.*$", "data_folder: .", text)
    text = re.sub(r"(?m)(?<=: )\.\./[\w./-]+", lambda match: _moved(match[0], template.parent, output), text)
    target = folder / f"{name}.yaml"
    target.write_text(text, encoding="utf-8")
    return target


def _moved(path: str, old: Path, new: Path) -> str:
    return os.path.relpath(old / path, new.resolve())
