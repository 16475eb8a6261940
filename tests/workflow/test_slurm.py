"""`visatb run --profile`: jobs go to SLURM's commands (stand-ins), once per model, with what they need."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflow.runs import REPOSITORY
from tests.workflow.test_run import experiment, wait_for

PROFILE = REPOSITORY / "scripts_visatb" / "slurm"
STAND_INS = Path(__file__).parent / "slurm_stand_ins"
COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "srun", "sinfo", "scontrol", "sacctmgr", "sshare")


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """The environment of a machine with SLURM."""
    commands, state = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    state.mkdir()
    for name in COMMANDS:
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_INS / "slurm.py"} {name} "$@"\n')
        (commands / name).chmod(0o755)
    return {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "STAND_IN_SLURM": str(state)}


def profile(folder: Path) -> Path:
    """The shipped profile with a partition and an account filled in, and short waits."""
    content = yaml.safe_load((PROFILE / "config.yaml").read_text())
    content |= {"seconds-between-status-checks": 1, "slurm-init-seconds-before-status-checks": 1, "latency-wait": 10}
    content["default-resources"] |= {"slurm_partition": "gpu", "slurm_account": "mine"}
    (folder / "profile").mkdir()
    (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "profile"


def submitted(slurm: dict[str, str]) -> list[list[str]]:
    lines = (Path(slurm["STAND_IN_SLURM"]) / "calls.txt").read_text().splitlines()
    return [words for words in map(json.loads, lines) if words[0] == "sbatch"]


def test_run_on_slurm(tmp_path, slurm):
    run = experiment(tmp_path / "experiment", methods=["VisATB"], launcher={"gpus_per_job": 4})
    run("--profile", str(profile(tmp_path)), **slurm)
    jobs = submitted(slurm)
    models = [words for words in jobs if "--gpus=4" in words]
    assert len(models) == 4  # mini, plus_mini of a and b, VisATB: training and answering in one job each
    assert len(jobs) == 6  # and the data's two; what is light runs where the run runs
    for words in models:
        assert words[words.index("-t") + 1] == "1440"
        assert {"--cpus-per-task=64", "--signal=TERM@1800"} <= set(words)
        assert "--requeue" in words
        assert words[words.index("-p") + 1] == "gpu"
        assert not any(word.startswith("--ntasks-per-gpu") for word in words)
    assert run.read("results.json")["methods"]["VisATB"]["a"]
    calls = run.calls()
    assert {"train mini", "answer plus_mini:b val", "answer VisATB test"} <= set(calls)


@pytest.mark.slow
def test_failed_and_stopped_jobs_on_slurm(tmp_path, slurm):
    run = experiment(tmp_path / "experiment", methods=[])
    words = ("--profile", str(profile(tmp_path)))
    _, errors = run(*words, code=1, STAND_IN_FAILS="plus_mini-a", **slurm)
    assert "the stand-in was told to fail" in errors
    process = run.start(*words, STAND_IN_SECONDS="60", **slurm)
    log = run.workdir / "logs" / "engine.log"
    before = log.read_text().count("has been submitted")
    wait_for(lambda: log.read_text().count("has been submitted") > before, 120)
    _stop(process)
    cancelled = [words for words in _calls(slurm) if words[0] == "scancel"]
    assert cancelled
    run(*words, **slurm)
    assert run.read("weights.json")["weights"]


@pytest.mark.slow
def test_job_that_is_being_submitted_when_all_is_stopped(tmp_path, slurm):
    """Its number is not known yet, so that the scheduler cannot be told."""
    run = experiment(tmp_path / "experiment", methods=[])
    process = run.start("--profile", str(profile(tmp_path)), STAND_IN_SECONDS="200", STAND_IN_SBATCH="25", **slurm)
    wait_for(lambda: (run.workdir / "models" / "mini" / "progress").exists(), 240)
    _stop(process)
    assert "stopped" in (run.workdir / "logs" / "mini.log").read_text()


def _stop(process):
    process.send_signal(2)
    process.communicate(timeout=120)
    assert process.returncode == 130


def _calls(slurm: dict[str, str]) -> list[list[str]]:
    return [json.loads(line) for line in (Path(slurm["STAND_IN_SLURM"]) / "calls.txt").read_text().splitlines()]
