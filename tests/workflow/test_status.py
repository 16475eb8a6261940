"""What `visatb status` says of a work folder: from what jobs have noted, whatever logs and clocks say."""

import json
import os
import time

import pytest

from eval.files import read_object
from llava.progress import VARIABLE, Progress
from tests.workflow.world import write_experiment
from visatb.experiment.read import load_experiment
from visatb.workdir.layout import Layout
from visatb.workdir.state import Step, Steps, locked, note_outcome
from visatb.workflow.engine import Options, prepare
from visatb.workflow.status import read_status

DAY = 86400


@pytest.fixture
def layout(tmp_path):
    """The work folder of a run that has listed its jobs."""
    experiment = load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, methods=[]))
    layout = Layout(tmp_path / "work")
    prepare(experiment, layout, Options())
    return layout


def run_of(layout):
    return read_object(layout.jobs)["run"]


def states(layout):
    return {job.name: job.state for job in read_status(layout.root).jobs}


@pytest.mark.parametrize("shift", [-DAY, DAY])
def test_neither_words_in_a_log_nor_steps_of_the_clock_mislead(layout, shift):
    for job in ("check", "mini", "plus_mini:a", "plus_mini:b"):
        log = layout.log(job)
        log.parent.mkdir(exist_ok=True)
        log.write_text("2026-01-01 error: what an earlier run said\na question about the words failed: and error: \n")
        os.utime(log, (time.time() + shift,) * 2)
    note_outcome(layout, "check", run_of(layout), "failed")
    note_outcome(layout, "mini", run_of(layout), "stopped")
    note_outcome(layout, "plus_mini:a", run_of(layout), "running")  # killed
    note_outcome(layout, "plus_mini:b", "an earlier run", "failed")
    found = states(layout)
    assert found | {"check": "failed", "mini": "stopped", "plus_mini:a": "stopped", "plus_mini:b": "waiting"} == found


def test_a_running_job_is_where_its_command_says(layout, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(layout.progress("mini")))
    steps = Steps(layout, "mini")
    with locked(layout.lock("mini")):
        note_outcome(layout, "mini", run_of(layout), "running")
        steps.begin(Step("answer", "key", "val"))
        Progress(4, 1)
        [mini] = [job for job in read_status(layout.root).jobs if job.name == "mini"]
        assert (mini.state, mini.step, mini.progress, mini.left) == ("running", "answer val", 0.25, None)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        [mini] = [job for job in read_status(layout.root).jobs if job.name == "mini"]
        assert mini.seconds == 0.0


def test_a_folder_of_an_earlier_version_is_read(layout):
    """Its runs have no names and its jobs noted no outcomes; entries say where a log began."""
    content = read_object(layout.jobs)
    del content["run"]
    layout.jobs.write_text(json.dumps({**content, "begun": 0.0}))
    old = {"key": "key", "done": False, "seconds": 3.0, "since": time.time(), "log": 12}
    layout.steps("mini").parent.mkdir(exist_ok=True)
    layout.steps("mini").write_text(json.dumps({"train": old}))
    assert states(layout)["mini"] == "stopped"
    assert states(layout)["check"] == "waiting"
    with locked(layout.lock("mini")):
        assert states(layout)["mini"] == "running"
    steps = Steps(layout, "mini")
    steps.end(Step("train", "key"), True)
    assert steps.seconds("train") >= 3.0
