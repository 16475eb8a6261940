"""Files that are there whole or not at all, also after the machine loses power: the only code that writes them so.

A file is written under a temporary name in its own folder and renamed when it is whole. Nothing here imports numpy or
torch, so that an evaluator starts at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError

_BLOCK = 1 << 20


def read_json(path: Path, finite: bool = True) -> Any:
    """The JSON content of `path`; EvaluationError if it is missing, cut off, not UTF-8 JSON, or holds NaN or 1e400.

    Not `finite`: these are read as Python's numbers, of files that others write so.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise EvaluationError(f"cannot read {str(path)!r}: {error}") from error  # a NUL in the name
    try:
        return parse_json(content) if finite else json.loads(content)
    except NoJsonNumberError as error:
        raise EvaluationError(f"{path}: {error}") from error
    except RecursionError as error:
        raise EvaluationError(f"{path}: not valid JSON (nested too deeply to be read)") from error
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise EvaluationError(f"{path}: not valid JSON (it is not UTF-8 text: {where})") from error
    except ValueError as error:
        raise EvaluationError(f"{path}: not valid JSON ({error}); was the run that wrote it cut off?") from error


class NoJsonNumberError(ValueError):
    """`NaN`, `Infinity` or `1e400`, which Python's parser takes for numbers; the message names it and the cure."""

    def __init__(self, word: str) -> None:
        what = "a number beyond every float" if word[-1].isdigit() else "which JSON does not have"
        super().__init__(f"holds {word[:40]}, {what}; write null or leave the field out")


def parse_json(text: str | bytes) -> Any:
    """A JSON value whose numbers are finite; NoJsonNumberError for one that is not, ValueError for what is no JSON."""
    return json.loads(text, parse_constant=_refuse_number, parse_float=_finite)


def _refuse_number(word: str) -> Any:
    raise NoJsonNumberError(word)


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse_number(digits)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or was cut off."""
    try:
        content = read_json(path)
    except EvaluationError:
        return {}
    return content if isinstance(content, dict) else {}


def read_if_there(path: Path, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    """A JSON object, None where there is no such file; EvaluationError where it is broken or lacks a needed name."""
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: lacks a JSON object")
    if missing := [name for name in needed if name not in content]:
        raise EvaluationError(f"{path}: lacks {', '.join(missing)}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; EvaluationError where its folder cannot be written, ValueError for NaN and infinities."""
    try:
        with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1, allow_nan=False)
            stream.write("\n")
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8); OSError where its folder cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; OSError where its folder cannot be written."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_lines(path: Path, records: Iterable[Any]) -> int:
    """Write JSON lines, one record at a time; returns how many there are. Raises as `write_records`."""
    written = 0
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        for record in records:
            stream.write(as_utf8(record) + b"\n")
            written += 1
    return written


def as_utf8(record: Any) -> bytes:
    """A record as JSON; UnicodeEncodeError where it holds half of a surrogate pair, which is no text."""
    return json.dumps(record, ensure_ascii=False).encode()


def write_records(path: Path, records: Iterable[Any], encode: Callable[[Any], bytes] = as_utf8) -> int:
    """Write a JSON array with a record a line, one at a time; returns how many there are.

    Raises OSError where the folder cannot be written, and what `encode` raises.
    """
    written = 0
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        for record in records:
            stream.write((b",\n" if written else b"[\n") + encode(record))
            written += 1
        stream.write(b"\n]\n" if written else b"[]\n")
    return written


@contextmanager
def whole_file(path: Path, *, synced: bool = True) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the block ends well, and goes when it does not.

    Its name ends in `.tmp`. The file can be read by all users. Where not `synced`, it is whole or not there for all
    programs, but may be lost with the machine's power. Raises OSError where the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp gives 0600, which would keep colleagues from reading results
        if synced:
            move_into_place(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Rename a written file or folder over `path` (same file system): its content is on the disk before its new name.

    Without the first, a power cut can leave the final name with an empty file; without the second, the old file.
    """
    sync(temporary)
    os.replace(temporary, path)
    sync(Path(path).parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its names, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
