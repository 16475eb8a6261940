"""Reading a publisher's files: finding them, and streaming their JSON one record at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ijson

from eval.files import parse_json
from llava.data.errors import DataError
from llava.data.records import read_records
from visatb.prepare.source import PrepareError

_BUFFER = 1 << 20


def find(folder: Path, *names: str) -> Path:
    """The first of `names` (may hold `*`) in `folder` or one folder below; PrepareError that says what is missing."""
    for name in names:
        for pattern in (name, f"*/{name}"):
            found = sorted(path for path in folder.glob(pattern) if path.is_file())
            if found:
                return found[0]
    wanted = names[0] + (f" (or {', '.join(names[1:])})" if len(names) > 1 else "")
    raise PrepareError(f"{folder} holds no {wanted}; put the publisher's file there, or leave its task out (--tasks)")


def find_all(folder: Path, *patterns: str) -> list[Path]:
    """All files in `folder` or one folder below that match; PrepareError where there is none."""
    found = {path for name in patterns for pattern in (name, f"*/{name}") for path in folder.glob(pattern)}
    if not found:
        raise PrepareError(f"{folder} holds no {' or '.join(patterns)}; put the publisher's files there")
    return sorted(found)


def stamp(paths: Sequence[Path]) -> list[list[Any]]:
    """Name, size in bytes and time of change (ns) of files: tells whether they changed."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(set(paths))]


def items(path: Path, prefix: str) -> Iterator[Any]:
    """The values at an ijson `prefix` (such as `questions.item`), one at a time."""
    yield from _parsed(path, lambda file: ijson.items(file, prefix, use_float=True, buf_size=_BUFFER))


def pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """The keys and values of a JSON object, one pair at a time."""
    yield from _parsed(path, lambda file: ijson.kvitems(file, "", use_float=True, buf_size=_BUFFER))


def _parsed(path: Path, parse: Any) -> Iterator[Any]:
    number = 0
    try:
        with path.open("rb") as file:
            for number, found in enumerate(parse(file), start=1):  # noqa: B007 - named in the error
                yield found
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PrepareError(f"{path} is cut off or not valid JSON, after {number} entries ({reason})") from error
    except OSError as error:
        raise PrepareError(f"{path} cannot be read: {error}") from error


def whole(path: Path) -> Any:
    """A small JSON file, read at once."""
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise PrepareError(f"{path} cannot be read as JSON: {error}") from error


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON array or JSONL file; PrepareError where one is not an object."""
    try:
        for raw in read_records(path):
            if not isinstance(raw.content, dict):
                raise PrepareError(f"{path}, entry {raw.position}: not a record but a {type(raw.content).__name__}")
            yield raw.content
    except DataError as error:
        raise PrepareError(str(error)) from error


def field(record: dict[str, Any], name: str, path: Path) -> Any:
    """A record's value; PrepareError that names file and record where it has none."""
    try:
        return record[name]
    except (KeyError, TypeError) as error:
        known = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise PrepareError(f"{path}: an entry has no `{name}` (it has: {known[:200]})") from error


def text(value: Any) -> str:
    """A value as one stripped text (numbers as JSON writes them)."""
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)
