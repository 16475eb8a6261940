"""Killed with -9 at any moment, a run goes on and ends with the weights and scores of one that was left alone."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.workflow.runs import Run
from tests.workflow.test_run import experiment, wait_for

SETTINGS = {"methods": ["EW", "VisATB"]}
STAGES = {
    "subsets": "data/val",
    "training": "models/mini/progress",
    "answering": "answers/val/plus_mini-a/progress",
    "weights": "done/plus_mini-b.json",
    "final": "models/VisATB/progress",
    "test": "answers/test/VisATB/progress",
}


def outcome(run: Run) -> tuple[dict, dict]:
    scores = {path.name: path.read_bytes() for path in (run.workdir / "scores").rglob("*.json")}
    return run.read("weights.json"), scores


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = experiment(tmp_path_factory.mktemp("undisturbed"), **SETTINGS)
    run()
    return outcome(run)


def children(run: Run) -> list[psutil.Process]:
    """Everything that works for the run: by its tag, its folder, or its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.pid != os.getpid() and (str(run.workdir) in words or process.cwd().startswith(str(run.workdir))):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("victim", ["run", "job", "command", "all"])
def test_killed_run_goes_on(tmp_path, undisturbed, stage, victim):
    run = experiment(tmp_path, **SETTINGS)
    process = run.start(STAND_IN_SECONDS="1")
    wait_for(lambda: (run.workdir / STAGES[stage]).exists() or process.poll() is not None)
    kill(run, process, victim)
    process.communicate(timeout=120)
    run()
    assert outcome(run) == undisturbed
    assert not children(run)
    calls = run.calls()
    assert len([call for call in calls if call.startswith("train") and "resumed" not in call]) == 5


def kill(run: Run, process, victim: str) -> None:
    if victim == "run":
        process.kill()
        return
    named = {"job": "visatb.workflow.job", "command": ".train", "all": ""}[victim]
    for one in children(run):
        try:
            if named in " ".join(one.cmdline()) or victim == "all":
                one.kill()
        except psutil.NoSuchProcess:
            continue
    if victim == "all":
        process.kill()


def test_run_that_is_killed_takes_its_jobs_along(tmp_path):
    run = experiment(tmp_path, methods=[])
    process = run.start(STAND_IN_SECONDS="30")
    wait_for(lambda: (run.workdir / "models" / "mini" / "progress").exists())
    process.kill()
    process.communicate()
    wait_for(lambda: not children(run), 30)


def test_job_that_is_killed_leaves_nothing_that_a_new_run_would_meet(tmp_path, undisturbed):
    run = experiment(tmp_path, **SETTINGS)
    process = run.start("--jobs", "1", STAND_IN_SECONDS="100")
    wait_for(lambda: (run.workdir / "models" / "mini" / "progress").exists())
    jobs = [one for one in children(run) if "visatb.workflow.job" in " ".join(one.cmdline())]
    orphans = [one for one in children(run) if "llava.train.train" in " ".join(one.cmdline())]
    assert jobs
    assert orphans
    process.kill()
    for one in jobs:
        one.kill()  # before it can end its command
    process.communicate()
    assert any(one.is_running() for one in orphans)
    run()
    assert not any(one.is_running() for one in orphans)
    assert outcome(run) == undisturbed
    assert "processes of an earlier run" in Path(run.workdir / "logs" / "mini.log").read_text()


def test_ctrl_c_stops_in_order_and_the_next_run_goes_on(tmp_path, undisturbed):
    run = experiment(tmp_path, **SETTINGS)
    process = run.start(STAND_IN_SECONDS="4")
    wait_for(lambda: (run.workdir / "models" / "mini" / "progress").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not children(run)
    run()
    assert outcome(run) == undisturbed
    assert "train mini resumed" in run.calls()
