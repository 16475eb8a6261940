"""`visatb status`: where an experiment stands, read from its work folder; a live table while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import read_object
from llava.progress import read_progress
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.layout import Layout
from visatb.workdir.results_file import Results
from visatb.workdir.state import Steps, is_done, is_locked, read_keys, read_outcome
from visatb.workflow.estimate import weight_advice
from visatb.workflow.jobs import Job, jobs


@dataclass(frozen=True)
class JobStatus:
    """A job: its phase, its state, the step it is at, how far that is (0 to 1), and seconds spent and left."""

    name: str
    phase: str
    state: str
    step: str = ""
    progress: float | None = None
    seconds: float = 0.0
    left: float | None = None


@dataclass(frozen=True)
class Status:
    """A whole experiment: its jobs, whether a run is at work, and what is to be said."""

    name: str
    running: bool
    jobs: list[JobStatus]
    remarks: list[str]

    @property
    def done(self) -> int:
        """The number of finished jobs."""
        return sum(job.state == "done" for job in self.jobs)


def read_status(workdir: Path) -> Status:
    """The status of a work folder; ExperimentError if it is none."""
    layout = Layout(workdir.resolve())
    if not layout.jobs.is_file():
        raise ExperimentError(f"{workdir}: no run was started there")
    experiment = load_experiment(layout.experiment)
    plan = read_object(layout.jobs)
    running = is_locked(layout.lock("run"))
    found = [_job_status(layout, job, plan, running) for job in jobs(experiment)]
    remarks = ["the other jobs follow when mini has told the groups"] if experiment.grouping else []
    remarks += _results_remarks(layout)
    remarks += weight_advice(layout.root)
    return Status(experiment.name, running, found, remarks)


def _results_remarks(layout: Layout) -> Iterator[str]:
    """Which scores the results wait for, or that they are damaged."""
    try:
        results = Results.read(layout)
    except EvaluationError as error:
        yield f"{error}; remove it and run again"
    else:
        for task, file in results.waiting.items() if results else ():
            yield f"{task} waits for its score from outside: {file}"


def _job_status(layout: Layout, job: Job, plan: dict[str, Any], running: bool) -> JobStatus:
    keys = read_keys(plan["keys"])
    marker = read_object(layout.done(job.name))
    steps = Steps(layout, job.name)
    seconds = sum(entry.get("seconds", 0.0) for entry in steps.entries.values())
    if is_done(layout, job.name, keys):
        return JobStatus(job.name, job.phase, "done", seconds=seconds or marker.get("seconds", 0.0), progress=1.0)
    if is_locked(layout.lock(job.name)):
        at = next((name for name, entry in steps.entries.items() if "since" in entry), "")
        progress, left = read_progress(layout.progress(job.name)) if at else (None, None)
        now = max(0.0, time.time() - steps.entries[at]["since"]) if at else 0.0  # a clock may be set back
        return JobStatus(job.name, job.phase, "running", at, progress, seconds + now, left)
    outcome = read_outcome(layout, job.name, plan)
    begun = outcome is not None or (steps.entries and not running)
    state = "failed" if outcome == "failed" else "stopped" if begun else "waiting"
    return JobStatus(job.name, job.phase, state, seconds=seconds)
