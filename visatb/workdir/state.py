"""What is known of a run on disk: steps begun and done, finished jobs, locks."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from filelock import FileLock, Timeout

from eval.files import read_object, write_json
from visatb.experiment.names import Split
from visatb.workdir import outputs
from visatb.workdir.hashes import Files
from visatb.workdir.layout import Layout

logger = logging.getLogger(__name__)

Kind = Literal["check", "subsets", "train", "represent", "answer", "score", "weights", "results", "report"]


@dataclass(frozen=True)
class Step:
    """A part of a job: what is done, what its outcome depends on (as a hash), and whose questions it is about."""

    kind: Kind
    key: str
    split: Split | None = None

    @property
    def name(self) -> str:
        """How files of the work folder name it: `answer val`."""
        return f"{self.kind} {self.split}" if self.split else self.kind


Keys = dict[str, tuple[Step, ...]]
"""Job → its steps with their keys, in their order."""


def noted_keys(steps: Iterable[Step]) -> dict[str, str]:
    """Steps as they stand in files: `{name: key}`."""
    return {step.name: step.key for step in steps}


def read_keys(noted: Mapping[str, Mapping[str, str]]) -> Keys:
    """The steps of all jobs from what stands in a file."""
    return {job: tuple(_read_step(*pair) for pair in steps.items()) for job, steps in noted.items()}


def _read_step(name: str, key: str) -> Step:
    kind, _, split = name.partition(" ")
    return Step(cast(Kind, kind), key, cast(Split, split) if split else None)


class LockedError(Exception):
    """Somebody else holds the lock."""


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when this process ends, however it ends. Raises LockedError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock would outlive its process. The file stays, as others may be about to lock it.
    lock = FileLock(path, timeout=-1 if wait else 0, mode=0o644, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(path) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock now.

    Not by FileLock, which makes the file and opens it for writing: also who may only read the folder may ask.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


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

    def done(self, step: Step) -> bool:
        """Whether the step is done under its key and its outputs are there and whole."""
        return self._noted(step) is True and self.damage(step) is None

    def damage(self, step: Step, thorough: bool = False) -> str | None:
        """Which output of a step that was done is not as it was written; `thorough` reads them all to tell."""
        return outputs.damage(self.root, self.entries[step.name].get("outputs", {}), self.files, thorough)

    def lost(self, steps: Iterable[Step]) -> str | None:
        """The first output that is gone or damaged of those steps that were done under their keys."""
        done = (step for step in steps if self._noted(step) is True)
        return next((text for text in map(self.damage, done) if text), None)

    def begun(self, step: Step) -> bool:
        """Whether the step was begun under its key and not ended, so that it may go on from there."""
        return self._noted(step) is False

    def _noted(self, step: Step) -> bool | None:
        """Whether the step is noted as done under its key; None where it was not even begun."""
        entry = self.entries.get(step.name, {})
        return bool(entry.get("done")) if entry.get("key") == step.key else None

    def begin(self, step: Step) -> None:
        """Note that the step runs from now on, under its key."""
        seconds = self.entries[step.name].get("seconds", 0.0) if self.begun(step) else 0.0
        self.entries[step.name] = {"key": step.key, "done": False, "seconds": seconds, "since": time.time()}
        write_json(self.path, self.entries)

    def end(self, step: Step, done: bool, made: Iterable[Path] = ()) -> None:
        """Note that the step is done and has made these files, or how long it ran until it was broken off."""
        entry = self.entries[step.name]
        entry["seconds"] += max(0.0, time.time() - entry.pop("since"))  # a clock may be set back
        entry["done"] = done
        if done:
            entry["outputs"] = outputs.note(self.root, made)
        write_json(self.path, self.entries)

    def give_up(self, step: Step, run: str) -> None:
        """Note that the step, which is at work, came to an end that trying it again in this run would not change."""
        self.entries[step.name]["given_up"] = run

    def given_up(self, step: Step, run: str) -> bool:
        """Whether the step was given up under its key in this run."""
        return self.begun(step) and self.entries[step.name].get("given_up") == run

    def forget(self, step: Step, files: Iterable[Path]) -> None:
        """Note that a step is done without these of its files, which are about to be removed."""
        entry = self.entries.get(step.name, {})
        entry["outputs"] = outputs.without(entry.get("outputs", {}), self.root, files)
        write_json(self.path, self.entries)

    def seconds(self, kind: Kind) -> float:
        """The time that the steps of a kind took, in seconds."""
        entries = (entry for name, entry in self.entries.items() if _read_step(name, "").kind == kind)
        return float(sum(entry.get("seconds", 0.0) for entry in entries))


Outcome = Literal["running", "done", "failed", "stopped"]


def note_outcome(layout: Layout, job: str, run: str, outcome: Outcome) -> None:
    """Note how a job of a run ended; "running" while it has not, which stays where it is killed."""
    write_json(layout.outcome(job), {"run": run, "outcome": outcome})


def read_outcome(layout: Layout, job: str, plan: Mapping[str, Any]) -> Outcome | None:
    """How a job ended in the run that `jobs.json` (`plan`) is of; None where it was not started in it.

    Runs are told apart by their names, not by times, which a step of the clock would mix up. Older work folders, whose
    runs have no names, hold no outcomes.
    """
    noted = read_object(layout.outcome(job))
    return cast(Outcome, noted["outcome"]) if noted and noted.get("run") == plan.get("run") else None


def is_done(layout: Layout, job: str, keys: Keys) -> bool:
    """Whether a job's present steps are all done under their keys, as its marker says."""
    done: dict[str, str] = read_object(layout.done(job)).get("steps", {})
    return layout.done(job).exists() and noted_keys(keys[job]).items() <= done.items()


def mark_done(layout: Layout, job: str, done: Iterable[Step], entries: Mapping[str, Any], seconds: float) -> None:
    """Write a job's marker; `entries` are those of its `Steps`."""
    marker = {"job": job, "steps": noted_keys(done), "seconds": seconds, "finished": time.time(), "entries": entries}
    write_json(layout.done(job), marker)
