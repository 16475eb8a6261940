"""Work folders that are copied, moved, read-only or shared with other files, and clocks that step."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from tests.workflow.runs import REPOSITORY, Run
from tests.workflow.test_run import experiment, wait_for
from visatb.workflow import warm
from visatb.workflow.process import birth, is_alive, kill_tagged, tag_of


def job(run: Run, workdir: Path, name: str) -> subprocess.CompletedProcess[str]:
    """One job by hand."""
    command = [sys.executable, "-m", "visatb.workflow.job", str(workdir), name]
    return subprocess.run(command, env=run.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_job_in_a_copied_work_folder_leaves_the_originals_training_alone(tmp_path):
    run = experiment(tmp_path, methods=[])
    process = run.start("--jobs", "1", STAND_IN_SECONDS="5")
    wait_for(lambda: (run.workdir / "models" / "mini" / "progress").exists())
    copy = tmp_path / "copy"
    shutil.copytree(run.workdir, copy)
    done = job(run, copy, "mini")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "ended" not in (copy / "logs" / "mini.log").read_text(), done.stderr
    assert "train mini resumed" in run.calls()  # by the copy's job


def test_moved_work_folder_goes_on_and_one_that_lists_absolute_paths_is_read(tmp_path):
    run = experiment(tmp_path, methods=["EW"])
    run(code=1, STAND_IN_FAILS="EW")
    run.calls()
    listing = run.read("data/subsets.json")
    assert listing["questions"]["val"]["a"]["file"] == "data/val/a_val-12.json"
    assert listing["models"]["mini"]["files"]["a"] == ["data/a-mini_train-4.json"]
    assert listing["models"]["plus_mini:a"]["files"]["a"] == [str(tmp_path / "a_train-16.json")]  # the user's

    run.workdir.rename(tmp_path / "moved")
    run.workdir = tmp_path / "moved"
    listing["questions"]["test"]["b"]["file"] = str(run.workdir / "data" / "test" / "b_test-10.json")  # as it once was
    (run.workdir / "data" / "subsets.json").write_text(json.dumps(listing))
    run()
    assert run.calls() == ["answer EW test", "train EW"]


def test_answers_in_a_moved_folder_find_their_questions(tmp_path):
    run = experiment(tmp_path, methods=[])
    run()
    run.calls()
    run.workdir.rename(tmp_path / "moved")
    run.workdir = tmp_path / "moved"
    shutil.rmtree(run.workdir / "scores")
    for name in ("mini", "plus_mini-a", "plus_mini-b"):
        steps = run.workdir / ".workflow" / "steps" / f"{name}.json"
        entries = json.loads(steps.read_text())
        steps.write_text(json.dumps({step: entry for step, entry in entries.items() if step == "train"}))
        (run.workdir / "done" / f"{name}.json").unlink()
    run()
    assert {call for call in run.calls() if call.startswith("answer")} == {
        "answer mini val", "answer plus_mini:a val", "answer plus_mini:b val",
    }  # fmt: skip


def test_no_step_of_the_clock_makes_a_process_another(monkeypatch):
    born = birth(os.getpid())
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
    assert is_alive(os.getpid(), born)

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = birth(child.pid)
    assert is_alive(child.pid, born)
    assert not is_alive(os.getpid(), born)
    child.kill()
    wait_for(lambda: not is_alive(child.pid, born))  # also while nobody has asked for its exit code
    child.wait()
    assert birth(child.pid) is None


def test_tag_is_of_a_folder_not_of_its_content(tmp_path):
    (tmp_path / "work").mkdir()
    tag = tag_of(tmp_path / "work", "id", "mini")
    assert tag == tag_of(tmp_path / "work", "id", "mini") != tag_of(tmp_path / "work", "id", "base")
    shutil.copytree(tmp_path / "work", tmp_path / "copy")
    assert tag_of(tmp_path / "copy", "id", "mini") != tag
    (tmp_path / "work").rename(tmp_path / "moved")
    assert tag_of(tmp_path / "moved", "id", "mini") == tag


def test_forked_commands_carry_their_tag_where_others_see_it(tmp_path):
    """The server's own code, with a command of the test's."""
    (tmp_path / "sleeper.py").write_text(
        "import os, time\n"
        "def main(words):\n"
        "    os.fork()\n"  # a worker of the command's
        "    time.sleep(60)\n"
        "    return 0\n"
    )
    address, tag = str(tmp_path / "socket"), tag_of(tmp_path, "id", "mini")
    script = f"from visatb.workflow import warm; warm.serve({address!r}, ())"
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": path, warm.TAG: warm.NO_TAG}
    server = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        wait_for(lambda: Path(address).exists())
        with open(tmp_path / "log", "ab") as log:
            child = warm.Client(address, "sleeper", [], {**environment, warm.TAG: tag}, tmp_path, log.fileno())
        wait_for(lambda: tagged(tag) == 2)
        assert kill_tagged(tag) == 2
        assert child.wait(timeout=10) == -9
        assert server.poll() is None
    finally:
        server.kill()
        server.wait()


def tagged(tag: str) -> int:
    found = 0
    for process in psutil.process_iter():
        try:
            found += process.environ().get(warm.TAG) == tag
        except (psutil.Error, OSError):
            continue
    return found


def test_braces_in_the_name_of_a_task(tmp_path):
    run = experiment(tmp_path, {"a{x}": {}, "{}": {}}, methods=["EW"])
    run()
    assert set(run.read("weights.json")["weights"]) == {"a{x}", "{}"}


def test_modules_in_the_work_folder_are_not_imported(tmp_path):
    run = experiment(tmp_path, methods=[])
    run.workdir.mkdir()
    (run.workdir / ".workflow").mkdir()
    for name in ("json", "logging", "psutil", "visatb", "warnings"):
        (run.workdir / f"{name}.py").write_text("raise SystemExit('imported from the work folder')")
    run()
    assert "imported from" not in run.engine_log()
