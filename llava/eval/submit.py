"""Files for the benchmarks' servers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from llava.data.errors import DataError
from llava.eval.benchmark import Submission


def as_bytes(submission: Submission) -> bytes:
    """The content of the file, in the form that its suffix says."""
    if submission.suffix == ".xlsx":
        return _sheet(submission.content)
    rows = submission.content if submission.suffix == ".jsonl" else [submission.content]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _sheet(rows: Sequence[Sequence[Any]]) -> bytes:
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise DataError("MMBench's submission is a spreadsheet: pip install openpyxl, and run again") from error
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for row in rows:
        sheet.append([ILLEGAL_CHARACTERS_RE.sub("", cell) if isinstance(cell, str) else cell for cell in row])
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()
