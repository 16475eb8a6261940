"""One job of the workflow: `python -m visatb.workflow.job WORKDIR NAME` does what is left of it.

A job is a row of steps. Each step is noted when it begins and when it is done, under its key; a step done under the
present key is not done again, one begun under it goes on from where it was, and what another key left is removed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import read_object
from llava.data.errors import DataError
from llava.disk import write_problem
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.layout import Layout
from visatb.workdir.state import Outcome, Steps, locked, mark_done, note_outcome, read_keys
from visatb.workflow import devices
from visatb.workflow.context import Context
from visatb.workflow.jobs import jobs
from visatb.workflow.process import StepError, StoppedError, Stopper, is_alive, kill_tagged, tag_of
from visatb.workflow.steps import STEPS

logger = logging.getLogger("visatb.job")

STOP_FILE = "stop"
STOPPED = 143
_OUTCOMES: dict[int, Outcome] = {0: "done", STOPPED: "stopped"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns 0, 1 where a step failed, 2 for bad input, 143 where it was stopped."""
    workdir, name = sys.argv[1:] if argv is None else argv
    layout = Layout(Path(workdir).resolve())
    logging.raiseExceptions = False  # what a full disk keeps out of the log needs no traceback for each line
    try:
        return _run(layout, name)
    except OSError as error:
        problem = write_problem(error, layout.root)
        if problem is None:
            raise
        logger.error("error: %s", problem)
        return 2


def _run(layout: Layout, name: str) -> int:
    layout.log(name).parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=layout.log(name), format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", level=logging.INFO
    )
    plan = read_object(layout.jobs)
    stop = Stopper(lambda: _run_is_gone(layout, plan))
    stop.install()
    with locked(layout.lock(name), wait=True):
        code = _attempt(layout, name, plan, stop)
        with suppress(EvaluationError):  # a full disk, say: the log tells
            note_outcome(layout, name, plan.get("run", ""), _OUTCOMES.get(code, "failed"))
    return code


def _attempt(layout: Layout, name: str, plan: dict[str, Any], stop: Stopper) -> int:
    """Do the work; returns the exit code."""
    try:
        note_outcome(layout, name, plan.get("run", ""), "running")
        _work(layout, name, plan, stop)
    except StoppedError:
        logger.warning("stopped; the next run goes on from here")
        return STOPPED
    except (ExperimentError, DataError, EvaluationError) as error:
        logger.error("error: %s", error)
        return 2
    except StepError as error:
        logger.error("failed: %s", error)
        return 1
    except Exception as error:
        if problem := write_problem(error, layout.root):
            logger.error("error: %s", problem)
            return 2
        logger.exception("unexpected, and so a fault of the program:")
        # The terminal shows the last lines of the log.
        logger.error("failed: %s: %s", type(error).__name__, " ".join(str(error).split()) or "no more is known")
        return 1
    return 0


def _work(layout: Layout, name: str, plan: dict[str, Any], stop: Stopper) -> None:
    experiment = load_experiment(layout.experiment)
    job = next(job for job in jobs(experiment) if job.name == name)
    tag = tag_of(layout.root, plan["id"], name)
    if left := kill_tagged(tag):
        logger.warning("%d processes of an earlier run that was killed are ended", left)
    planned = read_keys(plan["keys"])[name]
    context = Context(experiment, layout, job, planned, Steps(layout, name), stop, tag, plan.get("run", ""))
    needs_gpus = job.model is not None and not all(map(context.steps.done, planned))
    count = experiment.launcher.gpus_per_job if needs_gpus else 0
    started = time.time()
    with devices.taken(sys.maxsize if count == "all" else count, stop) as context.gpus:
        for step in planned:
            STEPS[step.kind](context, step)
    mark_done(layout, name, planned, context.steps.entries, time.time() - started)
    _set_back(layout.done(before) for before in job.after)
    logger.info("done")


def _set_back(markers: Iterable[Path]) -> None:
    """Give the markers of jobs before this one, where they are of a time to come, the present time.

    Where the clock was set back while they were made, the engine would find this job's marker older than them, remove
    it and stop.
    """
    for marker in markers:
        with suppress(OSError):  # one that another user wrote, or that is gone
            if marker.stat().st_mtime > time.time():
                os.utime(marker)


def _run_is_gone(layout: Layout, plan: dict[str, Any]) -> bool:
    """Whether the run that started this job was stopped or, where it is a local one, killed."""
    if (layout.engine / STOP_FILE).exists():
        return True
    pid = plan.get("pid")  # none for a scheduler's job, which lives without the run that submitted it
    return pid is not None and not is_alive(pid, plan.get("birth"))


if __name__ == "__main__":
    sys.exit(main())
