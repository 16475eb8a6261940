"""What is known of a run on disk: steps begun and done, finished jobs, locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.core import EvaluationError, read_json, write_json
from visatb.graph import Job
from visatb.keys import Keys
from visatb.layout import Layout


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
    if not path.exists():
        return False
    try:
        with locked(path):
            return False
    except LockedError:
        return True


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or was cut off."""
    try:
        content = read_json(path)
    except EvaluationError:
        return {}
    return content if isinstance(content, dict) else {}


class Steps:
    """The steps of one job: for each the key it was begun or done under, and the seconds that it took so far."""

    def __init__(self, layout: Layout, job: str) -> None:
        self.path = layout.steps(job)
        self.entries: dict[str, dict[str, Any]] = read_object(self.path)

    def done(self, step: str, key: str) -> bool:
        """Whether the step is done under this key."""
        entry = self.entries.get(step, {})
        return bool(entry.get("key") == key and entry.get("done"))

    def begun(self, step: str, key: str) -> bool:
        """Whether the step was begun (and perhaps done) under this key, so that it may go on from there."""
        return self.entries.get(step, {}).get("key") == key

    def begin(self, step: str, key: str, log_size: int = 0) -> None:
        """Note that the step runs from now on, under this key; what it prints stands behind `log_size`."""
        before = self.entries.get(step, {})
        seconds = before.get("seconds", 0.0) if before.get("key") == key and not before.get("done") else 0.0
        self.entries[step] = {"key": key, "done": False, "seconds": seconds, "since": time.time(), "log": log_size}
        write_json(self.path, self.entries)

    def end(self, step: str, done: bool) -> None:
        """Note that the step is done, or how long it ran until it was broken off."""
        entry = self.entries[step]
        entry["seconds"] += time.time() - entry.pop("since")
        del entry["log"]
        entry["done"] = done
        write_json(self.path, self.entries)

    def seconds(self, *steps: str) -> float:
        """The time that steps took, in seconds."""
        return float(sum(self.entries.get(step, {}).get("seconds", 0.0) for step in steps))


def is_done(layout: Layout, job: str, keys: Keys) -> bool:
    """Whether a job's present steps are all done under their keys."""
    done: dict[str, str] = read_object(layout.done(job)).get("steps", {})
    return layout.done(job).exists() and keys[job].items() <= done.items()


def outstanding(layout: Layout, listed: list[Job], keys: Keys) -> list[Job]:
    """The jobs that are still to be run, in order."""
    return [job for job in listed if not is_done(layout, job.name, keys)]


def mark_done(layout: Layout, job: str, steps: Mapping[str, str], seconds: float) -> None:
    """Write a job's marker."""
    write_json(layout.done(job), {"job": job, "steps": dict(steps), "seconds": seconds, "finished": time.time()})
