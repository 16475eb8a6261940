"""The work of building an index: batches of records to rows of the index, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llava.constants import IGNORE_INDEX
from llava.data.errors import BadSampleError, DataError
from llava.data.flat import FlatSamples, starts_of, sums
from llava.data.images import ImageFolder, stamp
from llava.data.problems import Problem, problem_of
from llava.data.records import CheckedRecord, RawRecord, check_record, read_records
from llava.data.store import SCHEMA
from llava.data.template import TemplateEncoder, check_template
from llava.data.tokens import cut_to_length, target_runs

if TYPE_CHECKING:
    from llava.model.family import Processor

_RECORDS_PER_BATCH = 512
_POOL_FROM_BYTES = 32 << 20  # below this, starting processes takes longer than the work
_IMAGES_KNOWN = 1 << 16
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

    def with_task_ids(self, numbers: Mapping[str, int]) -> pa.RecordBatch:
        """The rows with the numbers of their tasks."""
        column = _numbers(np.array([numbers[task] for task in self.tasks], np.int32))
        return self.rows.set_column(SCHEMA.get_field_index("task_id"), "task_id", column)


class _ImageAt(NamedTuple):
    path: str
    height: int
    width: int
    tokens: int
    stamp: list[int]


class _Checked(NamedTuple):
    raw: RawRecord
    record: CheckedRecord
    images: list[_ImageAt]


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
        # Each worker looks at an image once, however many records have it; a change meanwhile shows at the next start.
        self._measured = lru_cache(maxsize=_IMAGES_KNOWN)(self._measure)

    def __call__(self, batch: Batch) -> BatchResult:
        result = BatchResult(None, [], batch.num_bytes)
        checked: list[_Checked] = []
        for raw in batch.records:
            try:
                record = check_record(raw, batch.file_task, self.allowed)
                found = [self._measured(path, len(record.images)) for path in record.images]
                checked.append(_Checked(raw, record, found))
            except _ImageError as error:
                result.problems.append(problem_of(batch.file, raw, error.error, error.path))
            except BadSampleError as error:
                result.problems.append(problem_of(batch.file, raw, error))
        encoded, problems = self.encoder.encode_flat([one.record.turns for one in checked])
        self._find_mismatches(checked, encoded, problems)
        kept, kept_images = self._cut(checked, encoded, problems)
        cut = encoded.heads(kept)
        self._find_without_target(checked, cut, kept_images, problems)
        good = np.array([number not in problems for number in range(len(checked))], dtype=np.bool_)
        images = np.array([len(one.images) for one in checked], dtype=np.int64)
        result.changed.update(
            truncated_samples=int((kept < encoded.lengths())[good].sum()),
            truncated_images=int((images - kept_images)[good].sum()),
        )
        self._put_rows(result, checked, cut, kept_images, good)
        result.problems += [problem_of(batch.file, checked[number].raw, error) for number, error in problems.items()]
        result.problems.sort(key=lambda problem: problem.position)
        return result

    def _measure(self, path: str, images: int) -> _ImageAt:
        try:
            if self.images is None:
                raise BadSampleError("missing_image", f"the record has image {path}, but no image folder is given")
            state = stamp(self.settings.image_folder, path)  # before the file is read: a later change is noticed
            height, width = self.images.size(path)
            try:
                tokens = self.settings.processor.num_image_tokens(height, width, images)
            except ValueError as error:
                raise BadSampleError("unfit_image", f"{path}, {width} × {height} pixels: {error}") from error
        except BadSampleError as error:
            raise _ImageError(path, error) from error
        return _ImageAt(path, height, width, tokens, state or [-1, -1])

    def _find_mismatches(
        self, checked: Sequence[_Checked], encoded: FlatSamples, problems: dict[int, BadSampleError]
    ) -> None:
        """Add samples whose tokenised text has more or fewer images than the record."""
        counts = sums(encoded.input_ids == self.encoder.image_token_id, encoded.starts)
        expected = np.array([len(one.images) for one in checked], dtype=np.int64)
        for number in np.flatnonzero(counts != expected).tolist():
            problems.setdefault(
                number,
                BadSampleError(
                    "image_count_mismatch",
                    f"{counts[number]} image tokens in the tokenised text, {expected[number]} images",
                ),
            )

    def _cut(
        self, checked: Sequence[_Checked], encoded: FlatSamples, problems: Mapping[int, BadSampleError]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many tokens and images of each sample stay within the maximum length, int64[n] both."""
        longest = self.settings.model_max_length
        kept = encoded.lengths()
        kept_images = np.array([len(one.images) for one in checked], dtype=np.int64)
        placeholders = np.array([sum(image.tokens for image in one.images) for one in checked], dtype=np.int64)
        for number in np.flatnonzero(kept - kept_images + placeholders > longest).tolist():
            if number not in problems:
                ids, _ = encoded.sample(number)
                counts = [image.tokens for image in checked[number].images]
                kept[number], kept_images[number] = cut_to_length(
                    ids, counts, self.encoder.image_ids, self.encoder.image_token_id, longest
                )
        return kept, kept_images

    def _find_without_target(
        self,
        checked: Sequence[_Checked],
        cut: FlatSamples,
        kept_images: NDArray[np.int64],
        problems: dict[int, BadSampleError],
    ) -> None:
        """Add samples that the maximum length leaves without a target."""
        longest = self.settings.model_max_length
        for number in np.flatnonzero(sums(cut.labels != IGNORE_INDEX, cut.starts) == 0).tolist():
            if number in problems:
                continue
            images = checked[number].images
            if kept_images[number] < len(images):
                taken = sum(image.tokens for image in images)
                error = BadSampleError("images_too_long", f"its images take {taken} of {longest} tokens")
            else:
                error = BadSampleError("no_target_left", f"no answer begins within {longest} tokens")
            problems[number] = error

    def _put_rows(
        self,
        result: BatchResult,
        checked: Sequence[_Checked],
        cut: FlatSamples,
        kept_images: NDArray[np.int64],
        good: NDArray[np.bool_],
    ) -> None:
        """Put the rows of the good samples into the result, and what is counted of them."""
        held = cut.heads(np.where(good, cut.lengths(), 0))  # nothing is left of the others
        starts = starts_of(held.lengths()[good])
        samples = FlatSamples(held.input_ids, held.labels, starts)
        records = [one.record for one, is_good in zip(checked, good.tolist(), strict=True) if is_good]
        images_of = [
            one.images[:count]
            for one, count, is_good in zip(checked, kept_images.tolist(), good.tolist(), strict=True)
            if is_good
        ]
        images = list(chain.from_iterable(images_of))
        counts = kept_images[good]
        runs, num_runs = target_runs(samples.labels, starts)
        tokens = np.array([image.tokens for image in images], dtype=np.int64)
        lengths = samples.lengths() - counts + sums(tokens, starts_of(counts))
        sides = [side for image in images for side in (image.height, image.width)]
        stamps = [number for image in images for number in image.stamp]
        columns = {
            "record_id": _texts([record.record_id for record in records]),
            "task_id": _numbers(np.zeros(len(records), np.int32)),
            "length": _numbers(lengths.astype(np.int32)),
            "input_ids": _lists(_numbers(samples.input_ids), samples.lengths()),
            "target_runs": _lists(_numbers(runs), 2 * num_runs),
            "images": _lists(_texts([image.path for image in images]), counts),
            "image_sizes": _lists(_numbers(np.array(sides, np.int32)), 2 * counts),
            "image_tokens": _lists(_numbers(tokens.astype(np.int32)), counts),
            "image_stamps": _lists(_numbers(np.array(stamps, np.int64)), 2 * counts),
        }
        result.rows = pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)
        result.tasks = [record.task for record in records]
        self._count(result, records, samples, lengths, counts)

    def _count(
        self,
        result: BatchResult,
        records: Sequence[CheckedRecord],
        samples: FlatSamples,
        lengths: NDArray[np.int64],
        images: NDArray[np.int64],
    ) -> None:
        names = {task: number for number, task in enumerate(dict.fromkeys(result.tasks))}
        tasks = np.array([names[task] for task in result.tasks], dtype=np.int64)
        targets = sums(samples.labels != IGNORE_INDEX, samples.starts)
        amounts = {"samples": np.ones_like(lengths), "tokens": lengths, "target_tokens": targets, "images": images}
        totals = {name: np.bincount(tasks, of_samples, len(names)) for name, of_samples in amounts.items()}
        for task, number in names.items():
            result.per_task[task] = Counter({name: int(of_tasks[number]) for name, of_tasks in totals.items()})
        if self.unknown_id is not None:
            unknown = sums(samples.labels == self.unknown_id, samples.starts)
            for number in np.flatnonzero(unknown).tolist():
                result.per_task[result.tasks[number]]["unknown_samples"] += 1
                result.unknown.setdefault(result.tasks[number], records[number].record_id)


# Arrays are made from buffers: `pyarrow.array` imports pandas first, which takes longer than a small index.


def _numbers(values: NDArray[np.int32] | NDArray[np.int64]) -> pa.Array:
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _texts(values: Sequence[str]) -> pa.Array:
    encoded = [value.encode() for value in values]
    ends = starts_of(np.array([len(text) for text in encoded], dtype=np.int64)).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _lists(values: pa.Array, lengths: NDArray[np.int64]) -> pa.Array:
    """A column of lists, the values of all of them one after the other."""
    return pa.ListArray.from_arrays(_numbers(starts_of(lengths).astype(np.int32)), values)


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
