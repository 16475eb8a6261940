"""Counting and sampling the records of data files, one at a time, without a tokenizer."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import files
from eval.names import SIZED, UNITS
from llava.data.errors import DataError
from llava.data.records import read_records, record_name


def count(files: Sequence[str]) -> int:
    """The number of records in data files; DataError where one is missing or broken."""
    return sum(1 for file in files for _ in read_records(file))


def count_by_name(files: Sequence[str]) -> int | None:
    """The number of records by the files' names (`…_train-41k.json`); None where one does not tell."""
    total = 0
    for file in files:
        match = SIZED.fullmatch(Path(file).stem)
        if match is None:
            return None
        total += round(float(match["size"]) * UNITS[match["unit"].lower()])
    return total


def chosen(task: str, total: int, size: int, seed: int) -> list[int]:
    """The places of `size` of `total` records, in order: a smaller choice lies in every larger one of the same seed."""
    return sorted(permutation(task, total, seed)[:size].tolist())


def permutation(name: str, total: int, seed: int) -> NDArray[np.int64]:
    """int64[total]: the numbers below `total`, shuffled by a seed and the name of what is shuffled."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(total)


def pick(files: Sequence[str], indices: Sequence[int], task: str) -> Iterator[dict[str, Any]]:
    """The records at these places (in order) of the files laid end to end, each with its `task`."""
    wanted = iter(indices)
    next_place = next(wanted, None)
    position = -1
    for file in files:
        for raw in read_records(file):
            position += 1
            if position == next_place:
                yield with_task(raw.content, task, f"{file}, record {record_name(raw.content, raw.position)}")
                next_place = next(wanted, None)


def with_task(content: Any, task: str, name: str) -> dict[str, Any]:
    """A record that says its task; DataError if it is none, or says another."""
    if not isinstance(content, dict):
        raise DataError(f"{name}: not a record but a {type(content).__name__}")
    if content.get("task", task) != task:
        raise DataError(
            f"{name}: its task is {content['task']!r}, but the file stands under {task!r} in the experiment file; "
            "name the task so, or part the file by task"
        )
    return {**content, "task": task}


def write_records(path: Path, records: Iterator[dict[str, Any]]) -> int:
    """Write a JSON array of records, one at a time, whole or not at all; returns how many there are.

    DataError names a record that is no text.
    """
    return files.write_records(path, records, _as_utf8)


def _as_utf8(record: dict[str, Any]) -> bytes:
    try:
        return files.as_utf8(record)
    except UnicodeEncodeError as error:
        raise DataError(
            f"record {record.get('id')!r} of task {record.get('task')}: holds half of a surrogate pair, no text; "
            "remove it, or the record"
        ) from error
