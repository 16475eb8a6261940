"""Building the index: every record checked and tokenised once, before any model is loaded.

The index depends on the content of the data files and on everything that shapes a sample, and is kept under a hash of
both; a second run with the same data and settings finds it ready. Images are not read whole, only their headers.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.files import digest, sha256, whole_file
from llava.data.errors import REASONS, DataError
from llava.data.images import stamp
from llava.data.index_rows import BatchResult, IndexSettings, run_batches
from llava.data.problems import SHOWN_ALIKE, Problem, counted, described
from llava.data.store import (
    PROBLEMS_FILE,
    SampleStore,
    SampleWriter,
    check_files,
    read_summary,
    write_summary,
)

if TYPE_CHECKING:
    from llava.model.family import Processor

logger = logging.getLogger(__name__)

# 2: sizes are those of upright images; 3: v0 trains on LLaVA's text; 4: the files' stamps; 5: unknown answers;
# 6: hashes of its files
_FORMAT = 6
_STOP_AT = 20  # bad records: enough to see what is wrong, without tokenising all the rest
_PROBE_SIZES = ((8, 8), (28, 28), (336, 336), (480, 640), (640, 427), (1024, 1536), (100, 900), (5000, 5000))
_DROPPED_QUIETLY = "no_target_left"  # cut to nothing by the maximum length: reported, but not a fault of the data


def build_index(
    data_paths: Sequence[str | os.PathLike[str]],
    settings: IndexSettings,
    cache_dir: str | os.PathLike[str],
    bad_samples: Literal["error", "skip"] = "error",
    num_workers: int | None = None,
) -> Path:
    """The folder of the index of `data_paths`, built unless `cache_dir` has it already.

    Records whose answers all lie beyond the maximum length are left out, counted in the log and listed in the folder.

    Args:
        bad_samples: "skip" leaves out, counts and lists bad records in the same way.
        num_workers: processes; None takes every core for large data.

    Raises:
        DataError: a file that cannot be read; with `bad_samples` "error" any bad record, the first ones together.
    """
    if bad_samples not in ("error", "skip"):
        raise ValueError(f"bad_samples must be 'error' or 'skip', not {bad_samples!r}")
    paths = [Path(path) for path in data_paths]
    if settings.image_folder is not None:
        settings = replace(settings, image_folder=os.path.abspath(settings.image_folder))
    key, described = _describe(paths, settings, bad_samples)
    target = Path(cache_dir) / f"index-{key}"
    if target.is_dir() and _is_current(target, settings.image_folder):
        logger.info("data index %s is ready", target)
    else:
        _build(paths, settings, described, bad_samples, target, num_workers)
    _report(read_summary(target), target)
    return target


def _describe(paths: Sequence[Path], settings: IndexSettings, bad_samples: str) -> tuple[str, dict[str, Any]]:
    """The key that the index is kept under, and what it stands for."""
    described = {
        "format": _FORMAT,
        "files": [{"path": str(path), **_hash_file(path)} for path in paths],
        "file_tasks": settings.tasks_of(paths),
        "image_folder": settings.image_folder,
        "task_names": settings.task_names,
        "template": settings.template,
        "model_max_length": settings.model_max_length,
        "bad_samples": bad_samples,
        "processor": _fingerprint(settings.processor),
    }
    return digest(described)[:20], described


def _hash_file(path: Path) -> dict[str, Any]:
    try:
        return {"sha256": sha256(path), "size": path.stat().st_size}
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error}") from error


def _fingerprint(processor: Processor) -> str:
    """A hash of what a processor does to text and to image sizes."""
    tokenizer = processor.tokenizer
    sizes = []
    for height, width in _PROBE_SIZES:
        try:
            sizes.append(processor.num_image_tokens(height, width))
        except ValueError:  # a family may refuse extreme shapes
            sizes.append(-1)
    parts = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer("a").input_ids]
    parts += [processor.image_text, processor.image_token_id, sizes]
    parts += [[processor.image_part, processor.end_token_ids]] if processor.in_parts else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_current(folder: Path, image_folder: str | None) -> bool:
    """Whether the index is whole, and all images, in use or left out, are still as it found them."""
    try:
        store, problems = _read_whole(folder)
    except (DataError, OSError, ValueError, LookupError) as error:  # pyarrow's errors are among these
        logger.warning("%s is damaged (%s); the data index is built again", folder, error)
        return False
    for problem in problems:
        if problem["image"] is not None and stamp(image_folder, problem["image"]) != problem["stamp"]:
            logger.info("%s has changed; the data index is built again", problem["image"])
            return False
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        return all(pool.map(lambda batch: _unchanged(image_folder, *batch), store.images()))


def _read_whole(folder: Path) -> tuple[SampleStore, list[dict[str, Any]]]:
    """The samples and the records left out; an error where a file is not as it was written."""
    check_files(folder)
    with open(folder / PROBLEMS_FILE, encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    return SampleStore(folder), problems


def _unchanged(image_folder: str | None, paths: list[str], stamps: NDArray[np.int64]) -> bool:
    for path, noted in dict(zip(paths, stamps.tolist(), strict=True)).items():
        if stamp(image_folder, path) != noted:
            logger.info("%s has changed or is gone; the data index is built again", path)
            return False
    return True


def _build(
    paths: Sequence[Path],
    settings: IndexSettings,
    described: dict[str, Any],
    bad_samples: str,
    target: Path,
    num_workers: int | None,
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".index-") as temporary, in_use(Path(temporary)):
        folder = Path(temporary) / "index"
        folder.mkdir()
        builder = _Builder(folder, settings, bad_samples)
        total = sum(path.stat().st_size for path in paths)
        bar = tqdm(total=total, unit="B", unit_scale=True, desc="data index", disable=None)
        with bar, builder.writer, open(folder / PROBLEMS_FILE, "w", encoding="utf-8") as problems:
            for result in run_batches(paths, settings, total, num_workers):
                builder.add(result, problems)
                bar.update(result.num_bytes)
        summary = builder.summary() | {"settings": described}
        write_summary(folder, summary)
        if target.exists():
            os.replace(target, Path(temporary) / "outdated")
        try:
            os.rename(folder, target)
        except OSError:
            if not target.is_dir():  # else another process finished the same index first
                raise


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep `folder/lock` locked; the system lets go of it when this process ends, however it ends."""
    with open(folder / "lock.new", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.replace(folder / "lock.new", folder / "lock")  # nobody sees it unlocked
        yield


def _remove_abandoned(cache: Path) -> None:
    """Remove what builds that were killed have left."""
    for file in cache.glob(".index-*/lock"):
        with suppress(OSError), open(file, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(file.parent, ignore_errors=True)


class _Builder:
    """Gathers the results of batches into the index folder."""

    def __init__(self, folder: Path, settings: IndexSettings, bad_samples: str) -> None:
        self.writer = SampleWriter(folder)
        self.settings = settings
        self.stop_at_problem = bad_samples == "error"
        self.task_ids = {name: number for number, name in enumerate(settings.task_names or ())}
        self.per_task: dict[str, Counter[str]] = {}
        self.skipped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.unknown: dict[str, str] = {}
        self.fatal: list[Problem] = []

    def add(self, result: BatchResult, problems: IO[str]) -> None:
        for problem in result.problems:
            self.skipped[problem.reason] += 1
            problems.write(json.dumps(problem.as_dict(self.settings.image_folder), ensure_ascii=False) + "\n")
            if self.stop_at_problem and problem.reason != _DROPPED_QUIETLY:
                self.fatal.append(problem)
        if len(self.fatal) >= _STOP_AT:
            raise _error(self.fatal, at_least=True)
        for task, counts in result.per_task.items():
            self.task_ids.setdefault(task, len(self.task_ids))
            self.per_task.setdefault(task, Counter()).update(counts)
        self.changed.update(result.changed)
        self.unknown = {**result.unknown, **self.unknown}
        self.writer.write(result.with_task_ids(self.task_ids))

    def summary(self) -> dict[str, Any]:
        if self.fatal:
            raise _error(self.fatal, at_least=False)
        total = sum(counts["samples"] for counts in self.per_task.values())
        if not total:
            left_out = ", ".join(f"{reason}: {count}" for reason, count in self.skipped.items()) or "no records at all"
            raise DataError(f"the data files hold no usable sample ({left_out})")
        return {
            "num_samples": total,
            "task_names": list(self.task_ids),
            "per_task": {task: dict(self.per_task.get(task, Counter())) for task in self.task_ids},
            "unknown": self.unknown,
            "skipped": dict(self.skipped),
            "truncated_samples": self.changed["truncated_samples"],
            "truncated_images": self.changed["truncated_images"],
        }


def _error(problems: Sequence[Problem], at_least: bool) -> DataError:
    lines = [f"{counted(len(problems), 'bad ')}{', and what follows is not read' if at_least else ''}:"]
    lines += described(problems)
    lines.append(
        "With `--bad_samples skip` (in an experiment file `training: {bad_samples: skip}`) such records are left out, "
        "counted and listed."
    )
    return DataError("\n".join(lines))


def _report(summary: Mapping[str, Any], folder: Path) -> None:
    """Say what the index holds and what it leaves out."""
    logger.info("data index: %d samples, in %s", summary["num_samples"], folder)
    for task, counts in summary["per_task"].items():
        if not counts:
            logger.warning("task %s has no sample in the data", task)
        else:
            logger.info("  %s: %d samples, %d target tokens", task, counts["samples"], counts["target_tokens"])
    for text, _ in unknown_answers(summary):
        logger.warning("%s", text)
    if summary["truncated_samples"]:
        images = summary["truncated_images"]
        logger.warning(
            "%d samples are cut to the maximum length (%d images go with it)", summary["truncated_samples"], images
        )
    for reason, count in sorted(cast("dict[str, int]", summary["skipped"]).items()):
        names = [f"{name} of {file}" for file, name in itertools.islice(_left_out(folder, reason), SHOWN_ALIKE)]
        more = f" and {count - len(names)} more" if count > len(names) else ""
        logger.warning("%s left out, %s (%s): %s%s", counted(count), reason, REASONS[reason], ", ".join(names), more)


def _left_out(folder: Path, reason: str) -> Iterator[tuple[str, str]]:
    """File and name of the records left out for a reason.

    A warning names some of them, not the list: the index may be in a folder that is gone when the warning is read.
    """
    with open(folder / PROBLEMS_FILE, encoding="utf-8") as lines:
        for problem in map(json.loads, lines):
            if problem["reason"] == reason:
                yield problem["file"], problem["record_id"]


def unknown_answers(summary: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """One text for each task with answers that the tokenizer does not know, and whether that is so of all of them."""
    for task, record in summary.get("unknown", {}).items():
        counts = summary["per_task"][task]
        unknown, samples = counts["unknown_samples"], counts["samples"]
        yield (
            f"task {task}: the answers of {unknown} of {samples} samples become unknown tokens (record {record}, say): "
            "no model can learn to write them; use a model whose tokenizer knows these words, or other words",
            unknown == samples,
        )


def copy_problems(index: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Copy the list of records left out to `target`, whole or not at all; returns how many there are."""
    source, target = Path(index) / PROBLEMS_FILE, Path(target)
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)
    return sum(read_summary(Path(index))["skipped"].values())
