"""Reading instruction records, one at a time, and checking what can be checked without a tokenizer.

A record is `{"id": ..., "task": ..., "image": path or [paths], "conversations": [{"from", "value"}, ...]}`; a file is a
JSON array of records or JSONL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import ijson

from eval.files import NoJsonNumberError, parse_json
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.errors import BadSampleError, DataError
from llava.data.foreign import no_conversations, not_json, not_parsed, records_within

_BUFFER = 1 << 20
_DEEPEST = 200
# So many openings in a row, of arrays or of objects by their first name; half of them, as a block may end within.
_OPENINGS = re.compile(rb'(?:[\[{]\s*(?:"[^"\\]{0,99}"\s*:\s*)?){%d}' % (_DEEPEST // 2))
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


Record = dict[str, Any]
"""A record as it stands in a file, or is to stand there."""


class RawRecord(NamedTuple):
    """One record as it stands in the file; `position` counts from 0, `offset` is how many bytes are read so far."""

    position: int
    content: Any
    offset: int


@dataclass(frozen=True)
class CheckedRecord:
    """A checked record. `turns` alternate human and gpt; `images` are relative paths, one per `<image>` in them."""

    record_id: str
    task: str
    turns: list[dict[str, str]]
    images: list[str]


def read_records(path: str | os.PathLike[str]) -> Iterator[RawRecord]:
    """The records of one file in order, holding one at a time. Raises DataError where the file is no such file."""
    try:
        with open(path, "rb", buffering=_BUFFER) as file:
            first = _first_byte(file)
            if first == b"[":
                yield from _read_array(path, file)
            elif first == b"{":
                yield from _read_lines(path, file)
            else:
                raise DataError(not_json(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _first_byte(file: BinaryIO) -> bytes:
    """The first byte that is not white space; leaves the file where the JSON begins."""
    if file.read(3) != _BYTE_ORDER_MARK:
        file.seek(0)
    start = file.tell()
    while (byte := file.read(1)).isspace():
        pass
    file.seek(start)
    return byte


def _read_array(path: str | os.PathLike[str], file: BinaryIO) -> Iterator[RawRecord]:
    position = -1
    try:
        for position, content in enumerate(ijson.items(_Shallow(path, file), "item", use_float=True, buf_size=_BUFFER)):
            yield RawRecord(position, content, file.tell())
    except (ijson.JSONError, UnicodeDecodeError) as error:
        if cause := not_parsed(path, error):
            raise DataError(f"{path} {cause}") from error
        cut = isinstance(error, ijson.IncompleteJSONError) and file.read(1) == b""
        problem = "is cut off or broken" if cut else "is not valid JSON"
        raise DataError(
            f"{path} {problem} after {position + 1} complete records ({_one_line(error)}); "
            "fetch or write the file again"
        ) from error


class _Shallow:
    """A file to be parsed, unless it nests values without end: the parser takes memory by the square of the depth.

    A long row of opening brackets may stand in a text, too. Only where there is one the depth is looked at.
    """

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.checked = False

    def read(self, size: int = -1) -> bytes:
        """As the file's; DataError where it is nested too deeply."""
        block = self.file.read(size)
        if not self.checked and _OPENINGS.search(block):
            self._check()
            self.checked = True
        return block

    def _check(self) -> None:
        depth = 0
        with open(self.path, "rb") as file:
            _first_byte(file)
            for event, _ in ijson.basic_parse(file, use_float=True, buf_size=_BUFFER):
                depth += event.startswith("start") - event.startswith("end")
                if depth > _DEEPEST:
                    raise DataError(
                        f"{self.path} nests values more than {_DEEPEST} levels deep: no record is like that"
                    )


def _read_lines(path: str | os.PathLike[str], file: BinaryIO) -> Iterator[RawRecord]:
    position = 0
    for number, line in enumerate(file, start=1):
        if line.isspace():
            continue
        try:
            content = parse_json(line)
        except NoJsonNumberError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        except RecursionError as error:
            raise DataError(f"{path}, line {number}: nests values without end: no record is like that") from error
        except ValueError as error:
            if cause := not_parsed(path, error):
                raise DataError(f"{path} {cause}") from error
            if position == 0 and (name := records_within(path)):
                raise DataError(
                    f"{path} is one object, with a list of objects in `{name}`; if those are the records, "
                    "write that list alone into the file"
                ) from error
            raise DataError(
                f"{path}, line {number}: not a whole JSON record ({_one_line(error)}); "
                "each line must hold one record, and the last one may be cut off"
            ) from error
        yield RawRecord(position, content, file.tell())
        position += 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def record_name(content: Any, position: int) -> str:
    """The record's id, or its place in the file where it has none."""
    if isinstance(content, dict) and content.get("id") is not None:
        return str(content["id"])
    return f"#{position}"


def image_paths(content: Any) -> list[str]:
    """The images of a record that need not be a good one, or even a record."""
    image = content.get("image") if isinstance(content, dict) else None
    return [path for path in (image if isinstance(image, list) else [image]) if isinstance(path, str)]


def record_images(record: Record) -> list[str]:
    """The images of a good record."""
    image = record.get("image")
    return [] if image is None else [image] if isinstance(image, str) else list(image)


def check_record(raw: RawRecord, file_task: str | None, task_names: Collection[str] | None) -> CheckedRecord:
    """The record in checked form; raises BadSampleError.

    `file_task` is the task of records that name none; `task_names` the tasks allowed, None for any.
    """
    content = raw.content
    if not isinstance(content, dict):
        raise BadSampleError("not_a_record", f"found a {type(content).__name__}")
    if "conversations" not in content:
        raise no_conversations(content)
    task = _task(content, file_task, task_names)
    turns = _turns(content.get("conversations"))
    images = _images(content.get("image"))
    marks = sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in turns)
    if marks != len(images):
        raise BadSampleError(
            "image_count_mismatch", f"{marks} {DEFAULT_IMAGE_TOKEN} in the turns, {len(images)} images"
        )
    return CheckedRecord(record_name(content, raw.position), task, turns, images)


def _task(content: dict[str, Any], file_task: str | None, task_names: Collection[str] | None) -> str:
    task = content.get("task", file_task)
    if task is None or task == "":
        raise BadSampleError("missing_task", "the record names no task")
    if not isinstance(task, str) or (task_names is not None and task not in task_names):
        known = f"; tasks are {', '.join(task_names)}" if task_names else ""
        raise BadSampleError("unknown_task", f"task {task!r}{known}")
    return task


def _turns(conversations: Any) -> list[dict[str, str]]:
    if not isinstance(conversations, list) or not conversations:
        raise BadSampleError("bad_conversation", "`conversations` is missing or empty")
    turns = [_turn(turn, number) for number, turn in enumerate(conversations, start=1)]
    if turns[0]["from"] == "gpt" and DEFAULT_IMAGE_TOKEN not in turns[0]["value"]:
        turns = turns[1:]  # as LLaVA does with conversations cut out of longer ones
    for position, turn in enumerate(turns):
        if turn["from"] != ("human", "gpt")[position % 2]:
            raise BadSampleError("not_alternating", f"turn {position + 1} is from {turn['from']}")
    if len(turns) % 2 or not turns:
        raise BadSampleError("not_alternating", "the last question has no answer")
    return turns


def _turn(turn: Any, number: int) -> dict[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise BadSampleError("bad_conversation", f"turn {number} has no text in `value`")
    speaker = turn.get("from")
    if speaker not in ("human", "gpt"):
        raise BadSampleError("bad_conversation", f"turn {number} is from {speaker!r}, not from human or gpt")
    if not turn["value"].strip():
        empty = "empty_answer" if speaker == "gpt" else "empty_question"
        raise BadSampleError(empty, f"turn {number} is empty")
    return {"from": speaker, "value": turn["value"]}


def _images(image: Any) -> list[str]:
    if image is None:
        return []
    images = [image] if isinstance(image, str) else image
    if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images):
        raise BadSampleError("bad_image_field", f"`image` is {image!r}")
    return images
