"""Running a command of ours so that nothing of it is left behind, whatever is killed.

Every process of a job carries the job's tag in its environment. A job that starts ends what an earlier one, killed
with -9, has left running; and a job whose run is gone ends its own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Protocol

import psutil

from visatb.workflow import warm
from visatb.workflow.stage_commands import Command
from visatb.workflow.warm import TAG

logger = logging.getLogger(__name__)

PATIENCE = 1800.0  # seconds that a command gets to save a checkpoint after SIGTERM: 187 GB for a 13B model
_POLL = 0.2


class StepError(Exception):
    """A step failed; the message says what to do."""


class StoppedError(Exception):
    """The job was asked to stop."""


class Stopper:
    """Whether this job is to stop: by a signal, by `also` (asked now and then), or because its run is gone."""

    def __init__(self, also: Callable[[], bool] = lambda: False) -> None:
        self.requested = False
        self.also = also

    def install(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP as requests."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __call__(self) -> bool:
        """Whether to stop."""
        self.requested = self.requested or self.also()
        return self.requested


class Child(Protocol):
    """A command at work: a process of ours, or a forked one."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


def run(command: Command, log: Path, environment: Mapping[str, str], folder: Path, stop: Stopper) -> None:
    """Run a command to its end, its output appended to `log`.

    Raises:
        StoppedError: it was ended (by SIGTERM first, so that it can save a checkpoint) because `stop` says so.
        StepError: it failed.
    """
    if stop():
        raise StoppedError
    with open(log, "ab") as output:
        child = _start(command, environment, folder, output)
    while True:
        try:
            code = child.wait(timeout=_POLL)
            break
        except (subprocess.TimeoutExpired, TimeoutError):
            if stop():
                _end(child, environment[TAG])
                raise StoppedError from None
    if stop():
        raise StoppedError
    if code:
        raise StepError(f"{command.module} ended with exit code {code}; its output stands above")


def _start(command: Command, environment: Mapping[str, str], folder: Path, output: BinaryIO) -> Child:
    address = os.environ.get(warm.ADDRESS)
    if address and command.alone and command.module in warm.MODULES:
        try:
            return warm.Client(address, command.module, command.arguments, environment, folder, output.fileno())
        except OSError as error:
            logger.warning("no forked start (%s): started anew", error)
    return subprocess.Popen(
        command.words,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,  # a Ctrl-C is for us; the command gets SIGTERM
    )


def _end(child: Child, tag: str) -> None:
    child.terminate()
    try:
        child.wait(timeout=PATIENCE)
    except (subprocess.TimeoutExpired, TimeoutError):
        logger.warning("the command does not end within %d s: killed", PATIENCE)
        child.kill()
    kill_tagged(tag)
    child.wait()


def kill_tagged(tag: str) -> int:
    """Kill this user's processes that carry the tag; returns how many there were."""
    killed = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(TAG) == tag:
                process.kill()
                killed.append(process)
        except (psutil.Error, OSError):
            continue  # gone, or another user's
    psutil.wait_procs(killed, timeout=30)
    return len(killed)


def birth(pid: int) -> str | None:
    """What tells a process from every other that had or will have its number; None where it is gone or a zombie.

    On Linux the boot and the clock ticks from it to the process's start, which no change of the clock moves: a time of
    day, reckoned back from it, jumps with every step of the clock.
    """
    try:
        if sys.platform == "linux":
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            # proc(5): field 2 is the name in brackets, which may itself hold any; 3 the state, 22 the start.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            return None if fields[0] in (b"Z", b"X") else f"{boot}:{int(fields[19])}"
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except (OSError, LookupError, ValueError, psutil.Error):
        return None


def is_alive(pid: int, born: str | None) -> bool:
    """Whether the process of this number and this `birth` is still there."""
    return born is not None and birth(pid) == born


def tag_of(folder: Path, identity: str, job: str) -> str:
    """What a job's processes carry: 32 hexadecimal digits that differ by work folder, also between copies of one.

    The folder's own number is part of it. A copy, whatever it holds, has another; a folder that was moved keeps it.
    """
    state = folder.stat()
    return hashlib.sha256(f"{identity}/{state.st_dev}:{state.st_ino}/{job}".encode()).hexdigest()[: len(warm.NO_TAG)]


def tail(log: Path, lines: int = 15, reach: int = 1 << 15) -> str:
    """The last lines of a log, progress bars reduced to their last state."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - reach))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    shown = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join([line for line in shown if line.strip()][-lines:])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; returns whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL)
    return True
