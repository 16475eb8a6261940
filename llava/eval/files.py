"""Reading the files that benchmarks are published in; every error names the file and what would mend it."""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.files import NoJsonNumberError, parse_json
from llava.data.errors import DataError
from llava.data.records import read_records

_LONGEST_CELL = 1 << 30  # bytes; images lie in cells


class MissingDataError(DataError):
    """A benchmark's file or folder is not there."""


def find(data: Path, *candidates: str, what: str = "") -> Path:
    """The first of `candidates` under `data` that exists; MissingDataError names all of them, and `what` it is."""
    for candidate in candidates:
        if (data / candidate).exists():
            return data / candidate
    tried = " or ".join(str(data / candidate) for candidate in candidates)
    raise MissingDataError(f"missing: {tried}" + (f" ({what})" if what else ""))


def find_optional(data: Path, *candidates: str) -> Path | None:
    """The first of `candidates` under `data` that exists."""
    return next((data / candidate for candidate in candidates if (data / candidate).exists()), None)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except NoJsonNumberError as error:
        raise DataError(f"{path}: {error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); fetch it again") from error


def read_rows(path: Path, *fields: str) -> list[dict[str, Any]]:
    """The records of a JSON array or of JSON lines, each an object with `fields`."""
    rows = []
    for raw in read_records(path):
        check_fields(path, raw.position, raw.content, *fields)
        rows.append(raw.content)
    return rows


def check_fields(path: Path, index: Any, row: Any, *fields: str) -> None:
    """Raises DataError unless `row`, record `index` of the file (None: all of it), is an object with `fields`."""
    lacking = [name for name in fields if name not in row] if isinstance(row, dict) else list(fields)
    if lacking or not isinstance(row, dict):
        where = path if index is None else f"{path}, record {index}"
        raise DataError(f"{where}: has no {', '.join(lacking) or 'fields'}; is it the official file?")


def read_table(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of a tab-separated table whose header holds `columns`."""
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", restval="")
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise DataError(f"{path}: has no column {', '.join(lacking)}; is it the official file?")
            yield from reader
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a tab-separated table ({error}); fetch it again") from error


def decode_image(path: Path, index: Any, text: str) -> bytes:
    """The bytes of an image that a table holds in base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{path}, record {index}: its image is not base64 ({error}); fetch the file again") from error
