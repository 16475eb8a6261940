"""The index on disk: a folder with one Arrow file of samples, a summary, and the list of records left out.

Legend: n samples, s tokens with one placeholder per image, S tokens with each placeholder repeated.

The Arrow file is memory-mapped: processes share its pages, and none holds the samples in memory of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval.files import digest, sha256
from llava.data.errors import DataError

SAMPLES_FILE = "samples.arrow"
SUMMARY_FILE = "summary.json"
PROBLEMS_FILE = "bad_samples.jsonl"
_ROWS_PER_BATCH = 8192

SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("task_id", pa.int32()),
        ("length", pa.int32()),  # S
        ("input_ids", pa.list_(pa.int32())),  # s of them
        ("target_runs", pa.list_(pa.int32())),  # begin, end, begin, end, ... in the s tokens
        ("images", pa.list_(pa.string())),  # relative paths
        ("image_sizes", pa.list_(pa.int32())),  # height, width of each image
        ("image_tokens", pa.list_(pa.int32())),  # placeholders of each image
        ("image_stamps", pa.list_(pa.int64())),  # size in bytes and time of change (ns) of each image's file
    ]
)


_LISTS = ("input_ids", "target_runs", "image_sizes", "image_tokens")


class IndexRow(NamedTuple):
    """One row of the index."""

    record_id: str
    task_id: int
    input_ids: NDArray[np.int32]
    target_runs: NDArray[np.int32]
    images: list[str]
    image_sizes: NDArray[np.int32]
    image_tokens: NDArray[np.int32]


class SampleWriter:
    """Writes record batches in rows of even size; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._sink = pa.OSFile(str(folder / SAMPLES_FILE), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= _ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, SCHEMA).combine_chunks())
        self._waiting, self._rows = [], 0

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()
        self._sink.close()


class SampleStore:
    """Read access to an index folder. Picklable by path; each process maps the file when it first reads."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.summary = read_summary(self.folder)
        self._open()

    def _open(self) -> None:
        # One reader per process; batches are views into the mapping, so holding all of them costs no copy.
        reader = pa.ipc.open_file(pa.memory_map(str(self.folder / SAMPLES_FILE), "r"))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._lists = [
            {name: (batch.column(name).offsets.to_numpy(), batch.column(name).values.to_numpy()) for name in _LISTS}
            for batch in self._batches
        ]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> IndexRow:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[number], index - int(self._starts[number])
        lists = {
            name: values[offsets[row] : offsets[row + 1]] for name, (offsets, values) in self._lists[number].items()
        }
        return IndexRow(
            record_id=batch.column("record_id")[row].as_py(),
            task_id=batch.column("task_id")[row].as_py(),
            images=batch.column("images")[row].as_py(),
            **lists,
        )

    def column(self, name: str) -> NDArray[np.int32]:
        """A whole column of plain numbers, int32[n] (a copy)."""
        parts = [batch.column(name).to_numpy() for batch in self._batches]
        return np.concatenate([np.empty(0, np.int32), *parts])

    def has_image(self) -> NDArray[np.bool_]:
        """bool[n]: whether a sample has at least one image."""
        parts = [np.diff(batch.column("image_tokens").offsets.to_numpy()) > 0 for batch in self._batches]
        return np.concatenate([np.empty(0, np.bool_), *parts])

    def target_tokens(self) -> NDArray[np.int64]:
        """int64[n]: the tokens of a sample that count in its loss; the first of its tokens is nobody's target."""
        parts = [np.empty(0, np.int64)]
        for columns in self._lists:
            offsets, runs = columns["target_runs"]
            bounds = runs[offsets[0] : offsets[-1]].reshape(-1, 2).astype(np.int64)
            until = np.concatenate([[0], np.cumsum(bounds[:, 1] - np.maximum(bounds[:, 0], 1))])
            parts.append(np.diff(until[(offsets - offsets[0]) // 2]))
        return np.concatenate(parts)

    def images(self) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
        """The image paths of the data set and the files' stamps (`int64[paths, 2]`), batch by batch."""
        for batch in self._batches:
            paths = batch.column("images").flatten().to_pylist()
            yield paths, batch.column("image_stamps").flatten().to_numpy().reshape(-1, 2)

    def image_paths(self) -> set[str]:
        """The images of the data set, each once."""
        return {path for paths, _ in self.images() for path in paths}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "summary": self.summary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def write_summary(folder: Path, content: dict[str, Any]) -> None:
    """Write what the index holds, last of its files, with hashes of the others and of this content itself."""
    content = content | {"sha256": {name: sha256(folder / name) for name in (SAMPLES_FILE, PROBLEMS_FILE)}}
    content |= {"seal": digest(content)}
    (folder / SUMMARY_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def check_files(folder: Path) -> None:
    """Raise DataError where a file of the index is not as it was written, to the last bit (reads them all)."""
    summary = read_summary(folder)
    if summary.get("seal") != digest({name: value for name, value in summary.items() if name != "seal"}):
        raise DataError(f"{SUMMARY_FILE} is not as it was written")
    for name, content in summary["sha256"].items():
        if sha256(folder / name) != content:
            raise DataError(f"{name} is not as it was written")


def read_summary(folder: Path) -> dict[str, Any]:
    """What the index holds and was made from; raises DataError when `folder` is no finished index."""
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is not a data index: {error}") from error
    if not isinstance(summary, dict):
        raise DataError(f"{folder} is not a data index: {SUMMARY_FILE} holds no JSON object")
    return summary
