"""The GPUs of one machine, handed out to its jobs: the engine counts them, this says which.

A GPU is held by a lock on a file of its own that all experiments of a user share; it is free again when the job ends,
however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from visatb.workdir.state import LockedError, locked
from visatb.workflow.process import StepError, StoppedError

OFFERED = "VISATB_GPUS"
"""Environment variable with the GPUs that a local run may use, by comma."""


def visible_gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    return [str(number) for number, _ in enumerate(line for line in listed.stdout.splitlines() if "GPU " in line)]


@contextlib.contextmanager
def taken(count: int, stop: Callable[[], bool], folder: Path | None = None) -> Iterator[list[str]]:
    """Hold `count` of the offered GPUs, waiting until so many are free; none where none are offered (SLURM gives its
    own). Raises StoppedError."""
    offered = [name for name in os.environ.get(OFFERED, "").split(",") if name]
    count = min(count, len(offered))
    with contextlib.ExitStack() as held:
        yield _take(held, offered, count, stop, folder or _shared_folder()) if count else []


def _take(
    held: contextlib.ExitStack, offered: list[str], count: int, stop: Callable[[], bool], folder: Path
) -> list[str]:
    found: list[str] = []
    with contextlib.ExitStack() as turn:
        # One job at a time reaches for GPUs, so that two do not hold half of what each needs.
        while count and not _try(turn, folder / "turn"):
            _pause(stop)
        while len(found) < count:
            for name in offered:
                if len(found) < count and name not in found and _try(held, folder / f"gpu-{name}"):
                    found.append(name)
            if len(found) < count:
                _pause(stop)
    return sorted(found, key=offered.index)


def _try(stack: contextlib.ExitStack, path: Path) -> bool:
    try:
        stack.enter_context(locked(path))
    except LockedError:
        return False
    return True


def _pause(stop: Callable[[], bool]) -> None:
    if stop():
        raise StoppedError
    time.sleep(0.2)


def _shared_folder() -> Path:
    """The folder of the locks, made where there is none.

    Its name can be foreseen, and everybody may write where it lies. So it must be a folder (not a link) that belongs to
    this user and that nobody else may write to; StepError where it is not.
    """
    folder = Path(tempfile.gettempdir()) / f"visatb-gpus-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise StepError(
            f"{folder} is not a folder of this user's that only this user may write to, so that locks in it cannot be "
            "trusted: remove it, have its owner remove it, or set TMPDIR to a folder of your own"
        )
    return folder
