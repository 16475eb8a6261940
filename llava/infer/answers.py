"""Answer files that are there whole or not at all, and journals that a killed run goes on from.

For the answer file `NAME.json` there are, beside it:
- `NAME.json.key`: whose answers these are (the run's key: model, weights, questions, settings). A finished file with
  the same key is reused; with another one, or none, it is refused. One with the same key that is not whole is made
  again.
- `NAME.json.part-K-of-N`, until the file is finished: answers of worker K of N, one JSON line each, below a first line
  that holds the key; lines that are damaged count as not there. The worker that finds the last answer missing no more
  writes the answer file.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from eval import files
from eval.errors import EvaluationError
from llava.data.errors import DataError
from llava.differences import differences

logger = logging.getLogger(__name__)

Key = Mapping[str, Any]
"""JSON values that decide the answers: two runs with equal keys answer alike."""


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
        records = _read_json(self.path)
        if isinstance(records, list) and len(records) == len(self.question_ids):
            return True
        logger.warning("%s is damaged and made again", self.path)
        self.path.unlink(missing_ok=True)
        return False

    def answers(self) -> dict[int, str]:
        """Answers so far by index, from all journals. Raises DataError if a journal is another run's."""
        found: dict[int, str] = {}
        for journal in self._journals():
            try:
                *whole, _ = journal.read_bytes().split(b"\n")  # what follows the last line's end was cut off
            except FileNotFoundError:
                continue  # another worker has just finished the file
            key = _journal_key(whole)
            if key is not None:
                self._check_key(journal, key)
            lines = [self._answer(line) for line in whole[1:]] if key is not None else []
            if (key is None and whole) or None in lines:
                logger.warning("%s is damaged; what cannot be read of it is answered again", journal)
            for index, answer in filter(None, lines):
                found.setdefault(index, answer)
        return found

    def _answer(self, line: bytes) -> tuple[int, str] | None:
        """Index and answer in a journal's line, None where it is damaged."""
        try:
            content = json.loads(line)
            index, answer = int(content["index"]), content["answer"]
            whole = isinstance(answer, str) and index >= 0 and content["id"] == self.question_ids[index]
        except (ValueError, LookupError, TypeError):
            return None
        return (index, answer) if whole else None

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
        if held == {name: value for name, value in self.key.items() if name != "images"}:
            return  # written before the images were part of the key
        kind = "answers" if file == self.path else "unfinished answers"
        if not isinstance(held, dict):
            whose = f"{kind} that did not come from this program, or whose .key file was lost"
        else:
            whose = f"{kind} of another run, which differs in {differences(held, self.key, {**held, **self.key})}"
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
        content = self._stream.read()
        # Below a first line that cannot be read, nothing would be found again.
        end = 0 if _journal_key(content.split(b"\n")[:-1]) is None else content.rfind(b"\n") + 1
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
        """Append `(index, answer)` pairs."""
        ids = self._answers.question_ids
        self._write([{"index": index, "id": ids[index], "answer": answer} for index, answer in answers])

    def _write(self, lines: Iterable[Any]) -> None:
        assert self._stream is not None
        self._stream.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._stream.flush()


def write_json(path: Path, content: Any) -> None:
    """Write `content` whole or not at all. Raises DataError where the folder cannot be written."""
    try:
        files.write_json(path, content)
    except EvaluationError as error:
        raise DataError(str(error)) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _journal_key(lines: Sequence[bytes]) -> dict[str, Any] | None:
    """The key in a journal's first line; None where that is missing or damaged."""
    try:
        key = json.loads(lines[0])["key"]
    except (ValueError, LookupError, TypeError):
        return None
    return key if isinstance(key, dict) else None
