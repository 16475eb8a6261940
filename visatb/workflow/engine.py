"""Running an experiment: list what is left, hand it to the engine (Snakemake), watch over it, say how it went.

One run at a time per work folder. What a run leaves behind, killed or not, is on disk; the next one goes on from there.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from eval.answers import safe_name
from eval.files import read_object, write_json, write_text
from visatb.experiment.read import load_experiment
from visatb.experiment.schema import Experiment
from visatb.workdir.layout import Layout
from visatb.workdir.state import Keys, LockedError, is_done, locked, noted_keys, read_keys, read_outcome
from visatb.workflow import devices, warm
from visatb.workflow.context import REPOSITORY
from visatb.workflow.job import STOP_FILE
from visatb.workflow.jobs import CHECK, SUBSETS, Job
from visatb.workflow.jobs import jobs as all_jobs
from visatb.workflow.keys import compute
from visatb.workflow.outstanding import is_known, outstanding, resolve
from visatb.workflow.process import birth, is_alive, tail, wait_until

logger = logging.getLogger(__name__)

SNAKEFILE = Path(__file__).with_name("Snakefile")
_MAX_LOCAL_JOBS = 8


@dataclass(frozen=True)
class Options:
    """How a run is carried out. `profile` is a Snakemake profile (SLURM's, say); without one jobs run here."""

    max_jobs: int | None = None
    gpus: list[str] | None = None
    profile: str | None = None
    cold: bool = False  # start every command in an interpreter of its own


@dataclass
class Outcome:
    """How a run ended."""

    finished: bool
    failed: dict[str, str] = field(default_factory=dict)  # job → the end of its log
    stopped: bool = False


class RefusedError(Exception):
    """The run cannot start; the message says why."""


def run_experiment(
    file: Path, workdir: Path, options: Options | None = None, watch: Callable[[Layout], None] | None = None
) -> Outcome:
    """Run an experiment, or what is left of it; `watch` is called several times a second.

    Raises:
        ExperimentError: the experiment file is not as it should be.
        RefusedError: another run works in the folder, or the folder is of another kind.
    """
    options = options or Options()
    layout = Layout(workdir.resolve())
    experiment = load_experiment(file)
    if layout.root.is_dir() and any(layout.root.iterdir()) and not layout.engine.is_dir():
        raise RefusedError(f"{layout.root} holds other files: choose another --workdir")
    try:
        with locked(layout.lock("run")):
            return _run_in_turn(experiment, layout, options, watch or (lambda _: None))
    except LockedError as error:
        raise RefusedError(f"another run works in {layout.root}: wait for it, or stop it first") from error


def _run_in_turn(experiment: Experiment, layout: Layout, options: Options, watch: Callable[[Layout], None]) -> Outcome:
    """Find the groups first where the experiment leaves them open, then run the rest."""
    if experiment.grouping is None:
        layout.grouping.unlink(missing_ok=True)
    else:
        keys = compute(experiment, layout)
        if not is_known(keys, layout):
            outcome = run_once(experiment, layout, options, watch, keys)
            if outcome.stopped or not outcome.finished:
                return replace(outcome, finished=False)
        experiment = resolve(experiment, layout)
    return run_once(experiment, layout, options, watch)


def run_once(
    experiment: Experiment,
    layout: Layout,
    options: Options,
    watch: Callable[[Layout], None],
    keys: Keys | None = None,
) -> Outcome:
    """Run the jobs that are left of an experiment, or of the part of it that its open grouping lets it list."""
    (layout.engine / STOP_FILE).unlink(missing_ok=True)
    found = prepare(experiment, layout, options, keys)
    if not found:
        return Outcome(True)
    with _stopping() as stop, _warm_server(layout, options, experiment) as environment:
        engine = _start(layout, options, experiment, environment)
        _watch_over(engine, layout, options, watch, stop)
    watch(layout)
    plan = read_object(layout.jobs)
    keys = read_keys(plan["keys"])
    unfinished = [job.name for job in found if not is_done(layout, job.name, keys)]
    failed = {job: tail(layout.log(job)) for job in unfinished if read_outcome(layout, job, plan)}
    finished = not unfinished
    if not finished and not failed and not stop:
        failed = {"engine": tail(layout.log("engine"))}
    return Outcome(finished, {} if stop else failed, bool(stop))


def prepare(experiment: Experiment, layout: Layout, options: Options, keys: Keys | None = None) -> list[Job]:
    """Write down the experiment and the jobs that are left; returns them. `keys` where they are computed already."""
    layout.engine.mkdir(parents=True, exist_ok=True)
    write_text(layout.experiment, experiment.to_yaml())
    listed = all_jobs(experiment)
    keys = keys or compute(experiment, layout)
    left = outstanding(layout, listed, keys)
    for job in left:
        layout.done(job.name).unlink(missing_ok=True)
    names = {job.name for job in left}
    plan = {
        "id": _identity(layout),
        "run": uuid.uuid4().hex,
        "pid": None if options.profile else os.getpid(),
        "birth": birth(os.getpid()),
        "python": sys.executable,
        "keys": {job: noted_keys(steps) for job, steps in keys.items()},
        "jobs": [_rule(layout, job, names, experiment, index) for index, job in enumerate(left)],
    }
    write_json(layout.jobs, plan)
    return left


def _identity(layout: Layout) -> str:
    """What tells this work folder's processes from others'."""
    file = layout.engine / "id"
    if not file.exists():
        write_text(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")


def _rule(layout: Layout, job: Job, names: set[str], experiment: Experiment, index: int) -> dict[str, Any]:
    count = experiment.launcher.gpus_per_job
    resources = {"gpu": count, "tasks_per_gpu": 0} if job.model is not None and isinstance(count, int) and count else {}
    return {
        "name": job.name,
        "rule": "job_" + "".join(letter if letter.isalnum() else "_" for letter in safe_name(job.name)) + f"_{index}",
        "done": _seen_from_engine(layout, layout.done(job.name)),
        "after": [_seen_from_engine(layout, layout.done(name)) for name in job.after if name in names],
        "light": job.model is None and job.name not in (CHECK, SUBSETS),
        "priority": 1000 - index,
        "resources": resources,
    }


def _seen_from_engine(layout: Layout, path: Path) -> str:
    return os.path.relpath(path, layout.engine)


def _environment(options: Options, experiment: Experiment) -> dict[str, str]:
    """What all processes of a run inherit."""
    environment = dict(os.environ)
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{REPOSITORY}{os.pathsep}{path}" if path else str(REPOSITORY)
    for name in (devices.OFFERED, warm.ADDRESS):
        environment.pop(name, None)
    if options.profile:
        return environment
    gpus = offered_gpus(options, experiment)
    environment[devices.OFFERED] = ",".join(gpus)
    launcher = experiment.launcher
    if launcher.threads is not None:
        environment["OMP_NUM_THREADS"] = str(launcher.threads)
    elif not gpus and "OMP_NUM_THREADS" not in environment:
        jobs = options.max_jobs or parallel_jobs(experiment, 0)
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // (jobs * launcher.processes)))
    return environment


def offered_gpus(options: Options, experiment: Experiment) -> list[str]:
    """The GPUs that jobs share: those asked for, else all that are visible; none where jobs take none."""
    if experiment.launcher.gpus_per_job == 0:
        return []
    return devices.visible_gpus() if options.gpus is None else options.gpus


@contextmanager
def _warm_server(layout: Layout, options: Options, experiment: Experiment) -> Iterator[dict[str, str]]:
    """The environment of a run; with a server that forks commands where they are single processes on a CPU."""
    environment = _environment(options, experiment)
    if options.profile or options.cold or experiment.launcher.processes > 1 or offered_gpus(options, experiment):
        yield environment
        return
    with tempfile.TemporaryDirectory(prefix="visatb-") as folder:
        address = str(Path(folder) / "warm")
        command = [sys.executable, "-m", "visatb.workflow.warm", address]
        server = _spawn(command, layout, environment | {warm.TAG: warm.NO_TAG})
        try:
            if wait_until(lambda: os.path.exists(address) or server.poll() is not None, 60) and server.poll() is None:
                environment[warm.ADDRESS] = address
            yield environment
        finally:
            server.kill()
            server.wait()


def _start(
    layout: Layout, options: Options, experiment: Experiment, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(layout.engine)]
    # Our lock keeps other runs out and dies with us; the engine's own would outlive a kill.
    command += ["--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", "--keep-going", "--nocolor"]
    if options.profile:
        command += ["--profile", os.path.abspath(options.profile)]
        command += ["--jobs", str(options.max_jobs)] if options.max_jobs else []
    else:
        command += [
            "--cores",
            str(options.max_jobs or parallel_jobs(experiment, len(offered_gpus(options, experiment)))),
        ]
    return _spawn(command, layout, environment)


def _spawn(command: list[str], layout: Layout, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one, its output in the engine's log.

    It starts in a folder that only the workflow writes to, since `python -m` imports from there first: no `json.py`
    that a user keeps in the work folder may come before Python's own.
    """
    log = layout.log("engine")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            cwd=layout.engine,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The engine must not go on starting jobs when the run is killed.
            preexec_fn=lambda: warm.die_with_parent(signal.SIGKILL),
        )


def parallel_jobs(experiment: Experiment, num_gpus: int) -> int:
    """How many jobs run here at once: as the GPUs allow, else as the cores do."""
    launcher = experiment.launcher
    if num_gpus and launcher.gpus_per_job:
        return 1 if launcher.gpus_per_job == "all" else max(1, num_gpus // launcher.gpus_per_job)
    return max(1, min(_MAX_LOCAL_JOBS, (os.cpu_count() or 1) // (launcher.processes * (launcher.threads or 1))))


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch_over(
    engine: subprocess.Popen[bytes],
    layout: Layout,
    options: Options,
    watch: Callable[[Layout], None],
    stop: list[int],
) -> None:
    while engine.poll() is None:
        watch(layout)
        if stop:
            _stop(engine, layout, options, stop)
            return
        try:
            engine.wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            continue


def _stop(engine: subprocess.Popen[bytes], layout: Layout, options: Options, stop: list[int]) -> None:
    """End the engine and its jobs, which save what they can."""
    (layout.engine / STOP_FILE).touch()  # also for a job that was just being submitted, and is not cancelled
    if options.profile:
        engine.send_signal(signal.SIGINT)  # it cancels what it has submitted
        engine.wait()
        return
    logger.warning("stopping: running jobs save what they can (a second Ctrl-C does not wait for them)")
    jobs = [(job.pid, birth(job.pid)) for job in psutil.Process(engine.pid).children(recursive=True)]
    engine.kill()
    engine.wait()
    wait_until(lambda: len(stop) > 1 or not any(is_alive(*job) for job in jobs), 600)
