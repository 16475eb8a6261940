"""A lock is its process's: nobody else gets it, and it is let go of when the process dies, however it dies."""

import subprocess
import sys

import pytest

from visatb.workdir.state import LockedError, is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from visatb.workdir.state import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_process(tmp_path):
    file = tmp_path / "locks" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(file)
        with pytest.raises(LockedError), locked(file):
            pass
        holder.kill()
    assert not is_locked(file)
    with locked(file, wait=True):
        assert is_locked(file)
    assert file.exists()


def test_asking_makes_no_file(tmp_path):
    assert not is_locked(tmp_path / "run")
    assert not list(tmp_path.iterdir())
