"""Answer files that are there whole or not at all, and journals that a killed run goes on from.

For the answer file `NAME.json` there are, beside it:
- `NAME.json.key`: whose answers these are (the run's key: model, weights, questions, settings). A finished file with
  the same key is reused; with another one, or none, it is refused.
- `NAME.json.part-K-of-N`, until the file is finished: answers of worker K of N, one JSON line each, below a first line
  that holds the key. The worker that finds the last answer missing no more writes the answer file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from llava.data.errors import DataError

Key = Mapping[str, Any]
"""JSON values that decide the answers: two runs with equal keys answer alike."""


def safe_name(name: str) -> str:
    """`name` as a part of a file name: `plus_mini:vqa` becomes `plus_mini-vqa`."""
    return re.sub(r"[^\w.+-]", "-", name)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class AnswerFile:
    """The answer file at `path` for the questions with these ids, under one run's key."""

    def __init__(self, path: Path, key: Key, question_ids: Sequence[str]) -> None:
        self.path = path
        self.key = json.loads(json.dumps(key))
        self.question_ids = question_ids

    def is_finished(self) -> bool:
        """Whether the file is there with all answers of this run. Raises DataError if it is another run's."""
        if not self.path.exists():
            return False
        self._check_key(self.path, _read_json(self._key_file))
        return True

    def answers(self) -> dict[int, str]:
        """Answers so far by place, from all journals. Raises DataError if a journal is another run's."""
        found: dict[int, str] = {}
        for journal in self._journals():
            try:
                *whole, _ = journal.read_bytes().split(b"\n")  # what follows the last line's end was cut off
            except FileNotFoundError:
                continue  # another worker has just finished the file
            try:
                first, *lines = [json.loads(line) for line in whole] or [{"key": self.key}]
                self._check_key(journal, first["key"])
                for line in lines:
                    if line["id"] != self.question_ids[line["index"]]:
                        raise ValueError(f"an answer to {line['id']}")
                    found.setdefault(line["index"], line["answer"])
            except (ValueError, LookupError, TypeError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(f"{journal}: damaged ({error}); delete it and run again") from error
        return found

    def journal(self, worker: int, num_workers: int) -> Journal:
        """The journal of worker `worker` of `num_workers`, to add answers to."""
        return Journal(self.path.with_name(f"{self.path.name}.part-{worker}-of-{num_workers}"), self)

    def finish(self, records: Sequence[Any]) -> None:
        """Write the finished file, its key first, and remove the journals."""
        write_json(self._key_file, self.key)
        write_json(self.path, records)
        for journal in self._journals():
            journal.unlink(missing_ok=True)

    @property
    def _key_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.key")

    def _journals(self) -> list[Path]:
        prefix = f"{self.path.name}.part-"
        if not self.path.parent.is_dir():
            return []
        return sorted(file for file in self.path.parent.iterdir() if file.name.startswith(prefix))

    def _check_key(self, file: Path, held: Any) -> None:
        if held == self.key:
            return
        kind = "answers" if file == self.path else "unfinished answers"
        if not isinstance(held, dict):
            whose = f"{kind} that did not come from this program, or whose .key file was lost"
        else:
            names = [name for name in self.key if held.get(name) != self.key[name]]
            shown = (f"{name} ({_short(held.get(name))} there, {_short(self.key[name])} here)" for name in names)
            whose = f"{kind} of another run, which differs in {'; '.join(shown)}"
        raise DataError(f"{file} holds {whose}; delete it, or choose another --answers-folder or --model-name")


class Journal:
    """One worker's answers on disk, each there once `add` has returned. Locked while it is open."""

    def __init__(self, path: Path, answers: AnswerFile) -> None:
        self.path = path
        self._answers = answers
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # this kind of lock is not inherited by image workers, which outlive a killed run by seconds
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise DataError(f"{self.path}: another process is answering these questions now") from error
        self._stream = os.fdopen(handle, "r+b")
        end = self._stream.read().rfind(b"\n") + 1
        self._stream.seek(end)
        self._stream.truncate()  # a line that a kill cut off
        if not end:
            self._write([{"key": self._answers.key}])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, answers: Iterable[tuple[int, str]]) -> None:
        """Append `(place, answer)` pairs."""
        ids = self._answers.question_ids
        self._write([{"index": place, "id": ids[place], "answer": answer} for place, answer in answers])

    def _write(self, lines: Iterable[Any]) -> None:
        assert self._stream is not None
        self._stream.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._stream.flush()


def write_json(path: Path, content: Any) -> None:
    """Write `content` whole or not at all. Raises DataError where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=1)
                stream.write("\n")
            os.chmod(temporary, 0o644)  # mkstemp gives 0600, which would keep colleagues from reading results
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
