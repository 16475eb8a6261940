"""A process that has everything imported and forks a child for each command, for runs on a CPU.

Importing torch and transformers takes several CPU seconds, twice a model: more than a small model's training. Commands
are the same, with the same arguments and logs; they only begin after the imports. No threads run here before a fork.

One connection a command: the client sends the request with the log's descriptor, then `T` (SIGTERM) or `K` (SIGKILL)
as it likes; the answer is the exit code. A connection that ends early ends its command, and all die with the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ADDRESS = "VISATB_WARM"
"""Environment variable with the address of the server, where there is one."""
TAG = "VISATB_JOB_TAG"
"""Environment variable with what tells a job's processes from others."""
NO_TAG = "0" * 32
"""Its value in the server, as long as any job's, to be overwritten in the children."""
MODULES = ("llava.train.train", "inference_visatb", "llava.infer.represent", "visatb.commands.validate")
"""What it runs: modules with a `main(arguments) -> exit code`."""
_IMPORTED = (*MODULES, "llava.infer.run", "llava.infer.checkpoint")
_POLL = 0.05
_PR_SET_PDEATHSIG = 1


class Client:
    """A command in a forked child, with what is used of subprocess.Popen."""

    def __init__(
        self,
        address: str,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: int,
    ) -> None:
        """Ask for the command; OSError where no server answers."""
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(address)
        request = [module, list(arguments), dict(environment), str(folder)]
        body = json.dumps(request).encode()
        socket.send_fds(self.connection, [len(body).to_bytes(8, "big")], [log])
        self.connection.sendall(body)
        self.code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; TimeoutError if it does not come in time."""
        if self.code is None:
            self.connection.settimeout(timeout)
            answer = self.connection.recv(16)
            self.code = int(answer) if answer else -signal.SIGKILL  # the server is gone, and its children with it
            self.connection.close()
        return self.code

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._send(b"T")

    def kill(self) -> None:
        """Send SIGKILL to the command and all that it has started."""
        self._send(b"K")

    def _send(self, order: bytes) -> None:
        with contextlib.suppress(OSError):
            self.connection.sendall(order)


def serve(address: str, modules: Sequence[str] = _IMPORTED) -> None:
    """Import the modules, then answer requests until killed."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    for name in modules:
        importlib.import_module(name)
    children: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([listener, *children.values()], [], [], _POLL)
        if listener in readable:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError, ValueError):
                children[_start(connection, [listener, *children.values()])] = connection
        for pid, connection in children.items():
            if connection in readable:
                _obey(pid, connection)
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _end_group(pid)  # workers that outlive their command
                with contextlib.suppress(OSError), children.pop(pid) as connection:
                    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _obey(pid: int, connection: socket.socket) -> None:
    order = connection.recv(1)
    if order == b"T":
        os.kill(pid, signal.SIGTERM)
    else:  # K, or the client is gone
        _end_group(pid)
        if not order:
            time.sleep(_POLL)


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _start(connection: socket.socket, others: Sequence[socket.socket]) -> int:
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 1)
    left = int.from_bytes(head, "big")
    body = b""
    while len(body) < left:
        part = connection.recv(left - len(body))
        if not part:
            raise ValueError("the request was cut off")
        body += part
    pid = os.fork()
    if pid:
        os.close(descriptors[0])
        return pid
    code = 1
    try:
        for one in (connection, *others):
            one.close()
        code = _run(json.loads(body), descriptors[0])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(request: Any, log: int) -> int:
    module, arguments, environment, folder = request
    os.setsid()
    die_with_parent(signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    _show_tag(environment.get(TAG, ""))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    try:
        return int(importlib.import_module(module).main(arguments) or 0)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))


def _show_tag(tag: str) -> None:
    """Have the system show the tag as part of this process's environment, and of those that it forks.

    What others see of an environment is the memory that the process began with (proc(5), /proc/pid/environ): setting a
    variable does not change it, writing into it does. It must not have been changed or removed by `os.environ` before.
    """
    if sys.platform != "linux" or os.environ.get(TAG) != NO_TAG or len(tag.encode()) != len(NO_TAG):
        return
    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_void_p
    ctypes.memmove(library.getenv(TAG.encode()), tag.encode(), len(NO_TAG))


def die_with_parent(number: int) -> None:
    """Have this process get a signal when its parent ends (Linux only; nothing elsewhere)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    serve(sys.argv[1])
