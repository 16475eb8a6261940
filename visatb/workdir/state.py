"""What is known of a run on disk: steps begun and done, finished jobs, locks."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.core import EvaluationError, read_json, write_json
from visatb.workdir import outputs
from visatb.workdir.hashes import Files
from visatb.workdir.layout import Layout

logger = logging.getLogger(__name__)


Keys = dict[str, dict[str, str]]
"""Job → step → key, in the order of the steps."""


class LockedError(Exception):
    """Somebody else holds the lock."""


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when this process ends, however it ends. Raises LockedError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise LockedError(path) from error
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock now."""
    try:
        handle = os.open(path, os.O_RDONLY)  # also who may not write there may ask
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or was cut off."""
    try:
        content = read_json(path)
    except EvaluationError:
        return {}
    return content if isinstance(content, dict) else {}


class Steps:
    """The steps of one job: for each the key it was begun or done under, the seconds it took, and its outputs."""

    def __init__(self, layout: Layout, job: str, files: Files | None = None) -> None:
        self.path = layout.steps(job)
        self.root = layout.root
        self.files = files or Files()
        # A job that is done has them in its marker too: no training is done again for the loss of a small file.
        self.entries: dict[str, dict[str, Any]] = read_object(self.path) or read_object(layout.done(job)).get(
            "entries", {}
        )

    def done(self, step: str, key: str) -> bool:
        """Whether the step is done under this key and its outputs are there and whole."""
        return self._noted(step, key) is True and self.damage(step) is None

    def damage(self, step: str, thorough: bool = False) -> str | None:
        """Which output of a step that was done is not as it was written; `thorough` reads them all to tell."""
        return outputs.damage(self.root, self.entries[step].get("outputs", {}), self.files, thorough)

    def lost(self, keys: Mapping[str, str]) -> str | None:
        """The first output that is gone or damaged of steps that were done under these keys."""
        done = (step for step, key in keys.items() if self._noted(step, key) is True)
        return next((text for text in map(self.damage, done) if text), None)

    def begun(self, step: str, key: str) -> bool:
        """Whether the step was begun under this key and not ended, so that it may go on from there."""
        return self._noted(step, key) is False

    def _noted(self, step: str, key: str) -> bool | None:
        """Whether the step is noted as done under this key; None where it was not even begun."""
        entry = self.entries.get(step, {})
        return bool(entry.get("done")) if entry.get("key") == key else None

    def begin(self, step: str, key: str, log_size: int = 0) -> None:
        """Note that the step runs from now on, under this key; what it prints stands behind `log_size`."""
        before = self.entries.get(step, {})
        seconds = before.get("seconds", 0.0) if before.get("key") == key and not before.get("done") else 0.0
        self.entries[step] = {"key": key, "done": False, "seconds": seconds, "since": time.time(), "log": log_size}
        write_json(self.path, self.entries)

    def end(self, step: str, done: bool, made: Iterable[Path] = ()) -> None:
        """Note that the step is done and has made these files, or how long it ran until it was broken off."""
        entry = self.entries[step]
        entry["seconds"] += max(0.0, time.time() - entry.pop("since"))  # a clock may be set back
        del entry["log"]
        entry["done"] = done
        if done:
            entry["outputs"] = outputs.note(self.root, made)
        write_json(self.path, self.entries)

    def forget(self, step: str, files: Iterable[Path]) -> None:
        """Note that a step is done without these of its files, which are about to be removed."""
        entry = self.entries.get(step, {})
        entry["outputs"] = outputs.without(entry.get("outputs", {}), self.root, files)
        write_json(self.path, self.entries)

    def seconds(self, *steps: str) -> float:
        """The time that steps took, in seconds."""
        return float(sum(self.entries.get(step, {}).get("seconds", 0.0) for step in steps))


def is_done(layout: Layout, job: str, keys: Keys) -> bool:
    """Whether a job's present steps are all done under their keys, as its marker says."""
    done: dict[str, str] = read_object(layout.done(job)).get("steps", {})
    return layout.done(job).exists() and keys[job].items() <= done.items()


def mark_done(layout: Layout, job: str, keys: Mapping[str, str], steps: Steps, seconds: float) -> None:
    """Write a job's marker."""
    marker = {"job": job, "steps": dict(keys), "seconds": seconds, "finished": time.time(), "entries": steps.entries}
    write_json(layout.done(job), marker)
