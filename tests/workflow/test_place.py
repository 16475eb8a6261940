"""Work folders that are copied, moved, read-only or shared with other files, and clocks that step."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from llava.disk import write_problem
from tests.workflow.runs import REPOSITORY, Run
from tests.workflow.test_run import experiment, wait_for
from tests.workflow.world import write_experiment
from visatb.commands import init
from visatb.commands import plan as plan_command
from visatb.commands import run as run_command
from visatb.experiment.read import load_experiment
from visatb.workdir.state import is_locked, locked
from visatb.workflow import devices, warm
from visatb.workflow import job as one_job
from visatb.workflow.process import StepError, birth, is_alive, kill_tagged, tag_of
from visatb.workflow.space import shortage


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


def test_a_clock_that_is_set_back_within_a_run_does_not_end_it(tmp_path):
    """The markers of jobs before are of hours to come when a job is done."""
    run = experiment(tmp_path, methods=[])
    process = run.start("--jobs", "1", STAND_IN_SECONDS="2")
    wait_for(lambda: (run.workdir / "models" / "mini" / "progress").exists())
    later = time.time() + 10_000
    for name in ("check", "subsets"):
        os.utime(run.workdir / "done" / f"{name}.json", (later, later))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors + run.engine_log()


@pytest.mark.parametrize("shift", [-10_000, 10_000])
def test_a_finished_run_stays_finished_whatever_the_clock(world, tmp_path, shift):
    workdir = tmp_path / "work"
    assert world.run(workdir) is None
    for number, marker in enumerate(sorted((workdir / "done").iterdir())):
        moved = time.time() + shift * (number + 1)
        os.utime(marker, (moved, moved))
    assert world.run(workdir) is None
    assert world.calls == []


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


def test_locks_of_gpus_lie_in_a_folder_that_only_their_user_writes_to(tmp_path, monkeypatch):
    monkeypatch.setenv(devices.OFFERED, "0")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"visatb-gpus-{os.getuid()}"
    for _ in range(2):
        with devices.taken(1, lambda: False) as found:
            assert found == ["0"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(StepError, match="cannot be trusted"), devices.taken(1, lambda: False):
        pass
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StepError, match="cannot be trusted"), devices.taken(1, lambda: False):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())
    folder.unlink()
    folder.touch(0o600)  # no folder
    with pytest.raises(StepError, match="cannot be trusted"), devices.taken(1, lambda: False):
        pass
    another = os.getuid() + 1
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: another)  # so that what this process makes is not its user's
        with pytest.raises(StepError, match="cannot be trusted"), devices.taken(1, lambda: False):
            pass
    monkeypatch.setenv(devices.OFFERED, "")
    with devices.taken(1, lambda: False) as found:  # nothing to lock
        assert found == []


def refuse(number):
    def refusing(path, *rest, **named):
        raise OSError(number, os.strerror(number), str(path))

    return refusing


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "choose a folder that this user may write to"), (errno.ENOSPC, "free some")]
)
def test_a_folder_that_cannot_be_written_is_one_message(tmp_path, monkeypatch, capsys, number, words):
    file = write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": "base"})
    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse(number))
        assert run_command.main([str(file), "--workdir", str(tmp_path / "work")]) == 2
    with monkeypatch.context() as patched:
        patched.setattr(init, "write_text", refuse(number))
        assert init.main([str(tmp_path), "--output", str(tmp_path / "new.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") and words in line for line in lines)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "choose a folder that this user may write to"), (errno.ENOSPC, "free some")]
)
def test_a_job_that_cannot_write_says_so_in_one_line(world, tmp_path, monkeypatch, caplog, number, words):
    """In a step of its own, and before it has a log."""

    def refusing(module, _):
        if module == "llava.train.train":
            raise OSError(number, os.strerror(number), "weights")

    world.fails = refusing
    log = world.run(tmp_path / "work")
    assert words in log.splitlines()[-1]
    assert "Traceback" not in log
    caplog.clear()
    monkeypatch.setattr(Path, "mkdir", refuse(number))
    assert one_job.main([str(tmp_path / "work"), "mini"]) == 2
    assert words in caplog.text
    monkeypatch.setattr(Path, "mkdir", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        one_job.main([str(tmp_path / "work"), "mini"])


def test_status_is_shown_to_those_who_may_only_read(tmp_path, monkeypatch):
    file = tmp_path / "lock"
    assert not is_locked(file)
    with locked(file):
        real = os.open

        def reading_only(path, flags, *rest):
            return (refuse(errno.EROFS) if flags & (os.O_WRONLY | os.O_RDWR) else real)(path, flags, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", reading_only)
            assert is_locked(file)
    assert not is_locked(file)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux that is always full")
def test_a_full_disk_is_told_from_other_errors(tmp_path):
    import torch

    def plain():
        with open("/dev/full", "w") as file:
            file.write("x")

    for write in (plain, lambda: torch.save(torch.zeros(100_000), "/dev/full")):
        with pytest.raises((OSError, RuntimeError)) as caught:
            write()
        assert "no space is left" in str(write_problem(caught.value, tmp_path / "not" / "there"))
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert write_problem(caught.value, tmp_path) is None
    torch.save(torch.zeros(100), tmp_path / "broken.pt")
    (tmp_path / "broken.pt").write_bytes((tmp_path / "broken.pt").read_bytes()[:600])
    with pytest.raises(RuntimeError) as caught:
        torch.load(tmp_path / "broken.pt")
    assert write_problem(caught.value, tmp_path) is None


def test_less_space_than_needed_is_said_before_anything_runs(tmp_path, monkeypatch, capsys):
    model = {"path": "somewhere/7b", "parameters": "1B"}
    file = write_experiment(tmp_path, {"a": {}, "b": {}}, model=model, methods=["EW", "VisATB"])
    # EW and VisATB stay with 4 bytes a parameter each; beside them a proxy with its weights and its last checkpoint of
    # 16 bytes, before both go.
    usage = shutil.disk_usage(tmp_path)
    for free, short in ((27.9e9, True), (28.1e9, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=int(free)))
        assert (shortage(load_experiment(file), tmp_path / "work") is not None) == short
        assert plan_command.main([str(file)]) == 0
        assert ("27.9 GB are free" in capsys.readouterr().err) == short


def test_a_failed_jobs_log_is_shown_once(tmp_path):
    _, errors = experiment(tmp_path, methods=["EW"])(code=1, STAND_IN_FAILS="mini")
    assert errors.count("the stand-in was told to fail") == 1


def test_an_interpreter_that_is_not_there_is_called_so(tmp_path):
    command = ["bash", str(REPOSITORY / "scripts_visatb" / "setup.sh")]
    environment = {**os.environ, "PYTHON": "python-of-nowhere", "VENV": str(tmp_path / "venv")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "setup: there is no python-of-nowhere; set PYTHON to a Python of 3.10 or newer\n"
