"""What a file that holds no records in fact is, and what to do about it."""

from __future__ import annotations

import codecs
import itertools
import os
import re
from typing import Any

import ijson

from eval.files import NoJsonNumberError
from llava.data.errors import BadSampleError

_BLOCK = 1 << 16
_LOOKED_AT = 2_000  # events of the parser
_PACKED = (
    (b"\x1f\x8b", "is compressed with gzip", "unpack it first (gunzip)"),
    (b"BZh", "is compressed with bzip2", "unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "is compressed with xz", "unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it first (unzstd)"),
    (b"PK\x03\x04", "is a zip archive", "unpack it first (unzip)"),
    (b"PAR1", "is a parquet file", "write it as records with `visatb convert --to llava`"),
    (codecs.BOM_UTF16_LE, "is in UTF-16", "save it in UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (codecs.BOM_UTF16_BE, "is in UTF-16", "save it in UTF-8 (iconv -f UTF-16 -t UTF-8)"),
)
_FORM = "it must be a JSON array of records, or one JSON record per line"
_TURNS = ("conversations", "messages")
_NO_JSON_NUMBER = re.compile(r"-?\b(?:NaN|Infinity)\b")


def not_json(path: str | os.PathLike[str]) -> str:
    """What a file is whose first character begins neither an array nor an object, and the cure."""
    with open(path, "rb") as file:
        head = file.read(_BLOCK)
    for magic, what, cure in _PACKED:
        if head.startswith(magic):
            return f"{path} {what}; {cure}: {_FORM}"
    if not head.strip():
        return f"{path} is empty; {_FORM}"
    if separator := _separator(head):
        return f"{path} is a table of values separated by {separator} (CSV); write each row as a record: {_FORM}"
    first = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return f"{path} begins with {first.decode('ascii', 'backslashreplace')!r}; {_FORM}"


def _separator(head: bytes) -> str | None:
    """The name of what separates the cells of a table: it stands as often in the second line as in the first."""
    lines = head.decode("utf-8", "replace").splitlines()[:2]
    for mark, name in ((",", "commas"), ("\t", "tabs"), (";", "semicolons")):
        if lines and lines[0].count(mark) and all(line.count(mark) >= lines[0].count(mark) for line in lines):
            return name
    return None


def not_parsed(path: str | os.PathLike[str], error: Exception) -> str | None:
    """What hinders a parser in a file that begins like JSON, and the cure; None where it is an error of JSON."""
    if (found := _not_utf8(path)) is not None:
        byte, offset = found
        return (
            f"is not in UTF-8 (byte 0x{byte:02x} at {offset}): it may be Latin-1 or Windows-1252; save it in UTF-8 "
            "(iconv -f WINDOWS-1252 -t UTF-8), or fetch it again if it was in UTF-8 once"
        )
    text = str(error)
    if word := _at_arrow(text):
        return str(NoJsonNumberError(word))
    if "overflow" in text.partition("\n")[0]:
        return f"holds a number that is too large ({' '.join(text.split())[:200]}); write it as a text, or leave it out"
    return None


def _not_utf8(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """The first byte that UTF-8 does not allow, and where; a last character cut in two is allowed."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return error.object[error.start], offset - pending + error.start
            offset += len(block)
    return None


def _at_arrow(text: str) -> str | None:
    """`NaN` or the like where the parser's message points: its second line is the text, its third an arrow below."""
    lines = text.splitlines()
    arrow = lines[-1].find("^") if lines else -1
    found = _NO_JSON_NUMBER.finditer(lines[1]) if len(lines) == 3 and arrow >= 0 else iter(())
    return next((word[0] for word in found if word.start() - 1 <= arrow <= word.end() + 1), None)


def records_within(path: str | os.PathLike[str]) -> str | None:
    """The name in a file's one object that has a list of objects: most likely the records; None where none has."""
    with open(path, "rb") as file:
        try:
            for prefix, event, _ in itertools.islice(ijson.parse(file, buf_size=1 << 12), _LOOKED_AT):
                name = prefix.removesuffix(".item")
                if event == "start_map" and name != prefix and "." not in name and name not in _TURNS:
                    return name
        except (ijson.JSONError, UnicodeDecodeError):
            return None
    return None


def no_conversations(content: dict[str, Any]) -> BadSampleError:
    """What a record without `conversations` is instead."""
    if isinstance(content.get("messages"), list):
        return BadSampleError("messages_format", "it has `messages` instead of `conversations`")
    for name, value in content.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            return BadSampleError("nested_records", f"`conversations` is missing; `{name}` lists {len(value)} objects")
    return BadSampleError("bad_conversation", "`conversations` is missing or empty")
