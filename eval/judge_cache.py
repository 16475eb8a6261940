"""Every reply of a judge, kept on disk as one JSON line, so that no reply is paid for twice.

A reply is kept as soon as it is there (written and flushed to the disk before anything else happens to it), and a line
that a killed process left unfinished is passed over. One process at a time asks for what the file does not hold: the
others wait for the file's lock, which the system gives back when its holder dies, and then find the replies in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.errors import EvaluationError

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a judge answered to one request. `refusal` is its reason where the endpoint says that it refused."""

    text: str
    finish_reason: str | None = None
    refusal: str | None = None
    served_by: str | None = None  # the model's full name as the endpoint reports it
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def cut_off(self) -> bool:
        """Whether the reply ended at the limit of tokens, not where the judge ended it."""
        return self.finish_reason == "length"


def request_key(base_url: str, model: str, request: dict[str, Any], messages: Messages) -> str:
    """The hash under which the replies to a request are kept: of endpoint, model, settings and prompt."""
    content = json.dumps([base_url, model, request, messages], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


class ReplyCache:
    """Replies by request key, in the order in which they came.

    Reading needs no lock. Inside `with`, the file is locked and replies can be added, from any thread.
    """

    def __init__(self, path: Path) -> None:
        """Read the file where there is one; EvaluationError where it cannot be read."""
        self.path = path
        self._lines = threading.Lock()
        self._handle: int | None = None
        self._replies: dict[str, list[Reply]] = {}
        self._read()

    def replies(self, key: str) -> list[Reply]:
        """All replies to a request, none where it was never answered."""
        return list(self._replies.get(key, ()))

    def __enter__(self) -> ReplyCache:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            self._lock(self._handle)
            self._end_torn_line(self._handle)
        except OSError as error:
            self._close()
            raise EvaluationError(
                f"{self.path}: the judge's cache cannot be written ({error.strerror or error}); "
                "name another with --cache or JUDGE_CACHE"
            ) from error
        self._read()  # whoever held the lock before may have added to it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, key: str, reply: Reply, request: dict[str, Any]) -> None:
        """Keep a reply, with the request that it answers for whoever reads the file; on disk when this returns."""
        if self._handle is None:
            raise RuntimeError("replies are added inside `with cache`")
        line = json.dumps({"key": key, "reply": asdict(reply), "request": request}, ensure_ascii=False) + "\n"
        with self._lines:
            try:
                _write_all(self._handle, line.encode())
                os.fsync(self._handle)
            except OSError as error:
                raise EvaluationError(f"{self.path}: cannot be written ({error.strerror or error})") from error
            self._replies.setdefault(key, []).append(reply)

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s: another process is asking the judge; waiting until it is done", self.path)
            fcntl.flock(handle, fcntl.LOCK_EX)

    def _end_torn_line(self, handle: int) -> None:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            _write_all(handle, b"\n")

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)  # gives the lock back
            self._handle = None

    def _read(self) -> None:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise EvaluationError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        self._replies = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                key, reply = _parse(line)
            except (ValueError, TypeError, LookupError):
                logger.warning("%s, line %d: not a whole reply (a run was killed?); passed over", self.path, number)
                continue
            self._replies.setdefault(key, []).append(reply)


def _parse(line: bytes) -> tuple[str, Reply]:
    entry = json.loads(line)
    known = {field.name for field in fields(Reply)}
    reply = Reply(**{name: value for name, value in entry["reply"].items() if name in known})
    if not isinstance(entry["key"], str) or not isinstance(reply.text, str):
        raise TypeError
    return entry["key"], reply


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
