"""The work of building an index: batches of records to rows of the index, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llava.data.errors import BadSampleError, DataError
from llava.data.images import ImageFolder, stamp
from llava.data.problems import Problem, problem_of
from llava.data.records import CheckedRecord, RawRecord, check_record, read_records
from llava.data.store import SCHEMA
from llava.data.template import Encoded, TemplateEncoder, check_template
from llava.data.tokens import cut_to_length, expanded_length, target_runs

if TYPE_CHECKING:
    from llava.model.family import Processor

_RECORDS_PER_BATCH = 512
_POOL_FROM_BYTES = 32 << 20  # below this, starting processes takes longer than the work
_BATCHES_IN_FLIGHT = 3  # per worker: enough to keep them busy, few enough to bound memory


@dataclass(frozen=True)
class IndexSettings:
    """Everything beside the data files that shapes a sample.

    Attributes:
        template: name of the conversation template; None is the processor's own.
        model_max_length: tokens of a sample, image tokens included; longer ones are cut.
        image_folder: what the records' image paths are relative to.
        task_names: the order of tasks, and all that are allowed; None takes the tasks as they come.
        file_tasks: the task of records that name none, by data file (its path, or its name).

    Raises:
        ValueError: a template that the tokenizer does not have, or task names that are none or not given once each.
    """

    processor: Processor
    template: str
    model_max_length: int
    image_folder: str | None = None
    task_names: tuple[str, ...] | None = None
    file_tasks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_template(self.template, self.processor.tokenizer)
        names = self.task_names
        if names is not None and (not names or len(set(names)) != len(names)):
            raise ValueError(f"task names must be given once each: {', '.join(names) or 'none'}")

    def tasks_of(self, paths: Sequence[Path]) -> list[str | None]:
        """The task, or None, of each data file. Raises DataError where one is given for a file that is not there."""
        named = {name: path for path in paths for name in (path.name, str(path.resolve()), str(path))}
        if unknown := sorted(set(self.file_tasks) - set(named)):
            raise DataError(f"a task is given for {', '.join(unknown)}, which is not among the data files")
        names = [(str(path), str(path.resolve()), path.name) for path in paths]
        return [next((self.file_tasks[name] for name in of_file if name in self.file_tasks), None) for of_file in names]


class Batch(NamedTuple):
    """Some records of one file."""

    file: str
    file_task: str | None
    records: list[RawRecord]
    num_bytes: int


@dataclass
class BatchResult:
    """Rows of the index (their task_id still to be set), and what was left out."""

    rows: pa.RecordBatch
    tasks: list[str]
    num_bytes: int
    problems: list[Problem] = field(default_factory=list)
    per_task: dict[str, Counter[str]] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, str] = field(default_factory=dict)
    """For each task with answers of unknown tokens, a record that has one."""


class _ImageAt(NamedTuple):
    path: str
    height: int
    width: int
    tokens: int
    stamp: list[int]


class _ImageError(Exception):
    """Joins a bad image's path to what is wrong with it."""

    def __init__(self, path: str, error: BadSampleError) -> None:
        super().__init__(path)
        self.path = path
        self.error = error


class BatchWorker:
    """Turns batches of records into rows of the index."""

    def __init__(self, settings: IndexSettings) -> None:
        self.settings = settings
        self.encoder = TemplateEncoder(settings.template, settings.processor)
        self.images = None if settings.image_folder is None else ImageFolder(settings.image_folder)
        self.unknown_id = settings.processor.tokenizer.unk_token_id
        self.allowed = None if settings.task_names is None else dict.fromkeys(settings.task_names)

    def __call__(self, batch: Batch) -> BatchResult:
        rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        result = BatchResult(None, [], batch.num_bytes)
        checked: list[tuple[RawRecord, CheckedRecord, list[_ImageAt]]] = []
        for raw in batch.records:
            try:
                record = check_record(raw, batch.file_task, self.allowed)
                checked.append((raw, record, [self._measure(path) for path in record.images]))
            except _ImageError as error:
                result.problems.append(problem_of(batch.file, raw, error.error, error.path))
            except BadSampleError as error:
                result.problems.append(problem_of(batch.file, raw, error))
        encoded = self.encoder.encode([record.turns for _, record, _ in checked])
        for (raw, record, images), tokens in zip(checked, encoded, strict=True):
            try:
                if isinstance(tokens, BadSampleError):
                    raise tokens
                self._add(rows, result, record, images, tokens)
            except BadSampleError as error:
                result.problems.append(problem_of(batch.file, raw, error))
        result.problems.sort(key=lambda problem: problem.position)
        result.rows = pa.RecordBatch.from_arrays([_column(rows[name], name) for name in SCHEMA.names], schema=SCHEMA)
        return result

    def _measure(self, path: str) -> _ImageAt:
        try:
            if self.images is None:
                raise BadSampleError("missing_image", f"the record has image {path}, but no image folder is given")
            state = stamp(self.settings.image_folder, path)  # before the file is read: a later change is noticed
            height, width = self.images.size(path)
            try:
                tokens = self.settings.processor.num_image_tokens(height, width)
            except ValueError as error:
                raise BadSampleError("unfit_image", f"{path}, {width} × {height} pixels: {error}") from error
        except BadSampleError as error:
            raise _ImageError(path, error) from error
        return _ImageAt(path, height, width, tokens, state or [-1, -1])

    def _add(
        self,
        rows: dict[str, list[Any]],
        result: BatchResult,
        record: CheckedRecord,
        images: list[_ImageAt],
        tokens: Encoded,
    ) -> None:
        placeholders = int((tokens.input_ids == self.encoder.image_token_id).sum())
        if placeholders != len(images):
            raise BadSampleError(
                "image_count_mismatch", f"{placeholders} image tokens in the tokenised text, {len(images)} images"
            )
        counts = [image.tokens for image in images]
        kept, kept_images = cut_to_length(
            tokens.input_ids,
            counts,
            self.encoder.image_ids,
            self.encoder.image_token_id,
            self.settings.model_max_length,
        )
        runs = target_runs(tokens.labels[:kept])
        targets = int((runs[1::2] - runs[::2]).sum())
        length = expanded_length(kept, counts[:kept_images])
        if not targets:
            longest = self.settings.model_max_length
            if kept_images < len(images):
                raise BadSampleError("images_too_long", f"its images take {sum(counts)} of {longest} tokens")
            raise BadSampleError("no_target_left", f"no answer begins within {longest} tokens")
        result.changed.update(
            truncated_samples=int(kept < len(tokens.input_ids)), truncated_images=len(images) - kept_images
        )
        result.per_task.setdefault(record.task, Counter()).update(
            samples=1, tokens=length, target_tokens=targets, images=kept_images
        )
        result.tasks.append(record.task)
        if self.unknown_id is not None and (tokens.labels[:kept] == self.unknown_id).any():
            result.per_task[record.task]["unknown_samples"] += 1
            result.unknown.setdefault(record.task, record.record_id)
        images = images[:kept_images]
        row = {
            "record_id": record.record_id,
            "task_id": 0,
            "length": length,
            "input_ids": tokens.input_ids[:kept],
            "target_runs": runs,
            "images": [image.path for image in images],
            "image_sizes": [size for image in images for size in (image.height, image.width)],
            "image_tokens": [image.tokens for image in images],
            "image_stamps": [number for image in images for number in image.stamp],
        }
        for name, value in row.items():
            rows[name].append(value)


def _column(values: list[Any], name: str) -> pa.Array:
    kind = SCHEMA.field(name).type
    if pa.types.is_list(kind) and pa.types.is_int32(kind.value_type):
        parts: list[NDArray[np.int32]] = [np.asarray(value, dtype=np.int32) for value in values]
        offsets = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.int32), *parts]))
    return pa.array(values, kind)


def run_batches(
    paths: Sequence[Path], settings: IndexSettings, total_bytes: int, num_workers: int | None
) -> Iterator[BatchResult]:
    """The results of all batches in the order of the records."""
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if total_bytes >= _POOL_FROM_BYTES else 1
    batches = _batches(paths, settings.tasks_of(paths))
    if num_workers <= 1:
        worker = BatchWorker(settings)
        yield from map(worker, batches)
        return
    # Forked from a fresh process that has the imports: forking this one can hang once it has started threads (a
    # tokenizer, torch, a process group), and importing in every worker anew takes long.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(settings.processor).__module__])
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(settings,)) as pool:
        waiting: deque[Future[BatchResult]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(_work, batch))
                if len(waiting) > num_workers * _BATCHES_IN_FLIGHT:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that builds the data index was killed, perhaps for memory; use fewer of them (num_workers)"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _batches(paths: Sequence[Path], file_tasks: Sequence[str | None]) -> Iterator[Batch]:
    for path, file_task in zip(paths, file_tasks, strict=True):
        records: list[RawRecord] = []
        read = 0
        for raw in read_records(path):
            records.append(raw)
            if len(records) == _RECORDS_PER_BATCH:
                yield Batch(str(path), file_task, records, raw.offset - read)
                records, read = [], raw.offset
        yield Batch(str(path), file_task, records, path.stat().st_size - read)


_worker: BatchWorker | None = None


def _start_worker(settings: IndexSettings) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker = BatchWorker(settings)


def _work(batch: Batch) -> BatchResult:
    if _worker is None:
        raise RuntimeError("the worker was not started")
    return _worker(batch)
