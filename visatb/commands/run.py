"""`visatb run`: subsets, proxies, validation, matrix, λ, final runs, test, report; or what is left of them."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from eval.errors import EvaluationError
from llava.data.errors import DataError
from llava.disk import write_problem
from visatb.commands.status import render
from visatb.commands.terminal import duration, plain_console
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.layout import Layout
from visatb.workdir.results_file import Results
from visatb.workflow.engine import Options, Outcome, RefusedError, run_experiment
from visatb.workflow.jobs import jobs
from visatb.workflow.keys import compute
from visatb.workflow.outstanding import is_known, outstanding, resolve
from visatb.workflow.space import shortage
from visatb.workflow.status import JobStatus, read_status

_FULL = 1 << 20  # bytes free, below which a disk is as good as full
_EVERY = 20.0  # seconds between lines about a running job, where there is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 where a job failed, 2 for bad input, 130 where it was stopped."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    workdir = arguments.workdir or default_workdir(arguments.experiment)
    gpus = None if arguments.gpus is None else [name for name in arguments.gpus.split(",") if name]
    console = plain_console(stderr=True)
    try:
        if arguments.dry_run:
            _list_jobs(arguments.experiment, workdir)
            return 0
        _say_shortage(arguments.experiment, workdir)
        started = time.monotonic()
        with _watching(console) as watch:
            outcome = run_experiment(
                arguments.experiment, workdir, Options(arguments.jobs, gpus, arguments.profile, arguments.cold), watch
            )
    except (ExperimentError, DataError, EvaluationError, RefusedError, OSError) as error:
        sys.stderr.write(f"error: {write_problem(error, workdir) or error}\n")
        return 2
    return _end(outcome, Layout(workdir), console, time.monotonic() - started)


def _say_shortage(file: Path, workdir: Path) -> None:
    with suppress(DataError, ExperimentError):  # said by what comes next
        if (short := shortage(load_experiment(file), workdir)) is not None:
            sys.stderr.write(f"warning: {short}\n")


def default_workdir(experiment: Path) -> Path:
    """Where an experiment works unless told otherwise: `outputs/<name of its file>`."""
    return Path("outputs") / experiment.stem


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visatb run", description=__doc__)
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="work folder (default: outputs/EXPERIMENT)")
    parser.add_argument("--jobs", type=_positive, metavar="N", help="jobs at once (default: as GPUs or cores allow)")
    parser.add_argument(
        "--gpus", metavar="LIST", help="GPUs to use, as 0,1,2 (default: all that are visible; '': none)"
    )
    parser.add_argument("--profile", metavar="DIR", help="scheduler profile, such as scripts_visatb/slurm")
    parser.add_argument("--cold", action="store_true", help="on a CPU, too, start each command in a new interpreter")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="list the jobs that are left")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _list_jobs(file: Path, workdir: Path) -> None:
    experiment, layout = load_experiment(file), Layout(workdir.resolve())
    keys = compute(experiment, layout)
    if experiment.grouping and is_known(keys, layout):
        experiment = resolve(experiment, layout)
        keys = compute(experiment, layout)
    listed = jobs(experiment)
    left = outstanding(layout, listed, keys)
    for job in left:
        sys.stdout.write(f"{job.name}\n")
    more = "; the others follow when mini has told the groups" if experiment.grouping else ""
    sys.stderr.write(f"{len(left)} of {len(listed)} jobs are left{more}\n")


@contextmanager
def _watching(console: Console) -> Iterator[Callable[[Layout], None]]:
    """What shows progress: a live table on a terminal, else a line now and then."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda layout: live.update(render(read_status(layout.root)))


class _Lines:
    """Progress as lines: every job's begin, steps and end, and how far the running ones are."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.before: dict[str, JobStatus] = {}
        self.last: dict[str, float] = {}

    def __call__(self, layout: Layout) -> None:
        status = read_status(layout.root)
        for job in status.jobs:
            before = self.before.get(job.name)
            # How it stood when the run began is no news.
            changed = before is not None and (before.state, before.step) != (job.state, job.step)
            due = job.state == "running" and time.monotonic() - self.last.get(job.name, 0) > _EVERY
            if changed or due:
                self._say(job, status.done, len(status.jobs))
            self.before[job.name] = job

    def _say(self, job: JobStatus, done: int, total: int) -> None:
        self.last[job.name] = time.monotonic()
        text = f"{job.name}: {job.step if job.state == 'running' and job.step else job.state}"
        if job.progress is not None and job.state == "running":
            text += f" {job.progress:.0%}" + (f", {duration(job.left)} to go" if job.left else "")
        if job.state == "done" and job.seconds:
            text += f" in {duration(job.seconds)}"
        if job.state in ("running", "done", "failed", "stopped"):
            self.console.print(
                f"{time.strftime('%H:%M:%S')}  [{done:>2}/{total}]  {text}", markup=False, highlight=False
            )


def say_words(layout: Layout, console: Console) -> None:
    """What came out, in the report's own words."""
    results = Results.read(layout)
    if results and (words := results.words):
        text = f"{words['headline']}.\n{words['sentence']}" + (f"\n{words['caution']}" if words["caution"] else "")
        console.print(text, markup=False, highlight=False)


def _end(outcome: Outcome, layout: Layout, console: Console, seconds: float) -> int:
    if outcome.finished:
        console.print(render(read_status(layout.root)))
        say_words(layout, console)
        console.print(f"finished in {duration(seconds)}")
        sys.stdout.write(f"{layout.report}\n")
        return 0
    if outcome.stopped:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    for job, text in outcome.failed.items():
        sys.stderr.write(f"\n{job} failed ({layout.log(job)}):\n{text}\n")
    if shutil.disk_usage(layout.root).free < _FULL:  # then logs may lack it
        sys.stderr.write(f"\nno space is left on the disk of {layout.root}: free some\n")
    sys.stderr.write("\nerror: not finished; mend what is said above, then the same command goes on from here\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
