"""Parquet files with their images: columns `id`, `task`, `images` (bytes and path), `conversations`, `extra` (JSON).

They open as Hugging Face data sets with decoded images. Other parquet files are read, too, where they hold
`conversations` or `messages` and `images` or `image`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.files import whole_file
from llava.data.errors import BadSampleError, DataError
from llava.data.images import ImageFolder
from llava.data.records import record_images
from visatb.convert.forms import Record, form_of, from_messages
from visatb.prepare.embedded import image_bytes, image_ending

_ROWS, _BYTES = 256, 64 << 20  # of a row group, whichever is reached first
_READ_ROWS = 16
_KNOWN = ("id", "task", "image", "conversations")


def write_table(path: Path, records: Iterable[tuple[str, Record]], images: Path | None) -> int:
    """Write LLaVA records (each with its name) with their images, whole or not at all; returns how many."""
    folder = None if images is None else ImageFolder(images)
    schema = _schema()
    written, size = 0, 0
    rows: list[Record] = []
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for name, record in records:
            rows.append(_row(record, folder, name))
            written += 1
            size += sum(len(image["bytes"]) for image in rows[-1]["images"])
            if len(rows) >= _ROWS or size >= _BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return written


def _schema() -> pa.Schema:
    """With the note by which `datasets` knows the images."""
    kinds = {"id": "string", "task": "string", "extra": "string"}
    turn = pa.struct([("from", pa.string()), ("value", pa.string()), ("references", pa.list_(pa.string()))])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [*((name, pa.string()) for name in kinds), ("images", pa.list_(image)), ("conversations", pa.list_(turn))]
    text = {"dtype": "string", "_type": "Value"}
    features = {
        **dict.fromkeys(kinds, text),
        "images": {"feature": {"_type": "Image"}, "_type": "List"},
        "conversations": {
            "feature": {"from": text, "value": text, "references": {"feature": text, "_type": "List"}},
            "_type": "List",
        },
    }
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _row(record: Record, folder: ImageFolder | None, name: str) -> Record:
    turns = []
    for turn in record["conversations"]:
        value = turn.get("value")
        references = value if isinstance(value, list) else None
        turns.append(
            {"from": turn.get("from"), "value": references[0] if references else value, "references": references}
        )
    extra = {key: value for key, value in record.items() if key not in _KNOWN}
    return {
        "id": None if record.get("id") is None else str(record["id"]),
        "task": record.get("task"),
        "images": [{"bytes": _read(path, folder, name), "path": path} for path in record_images(record)],
        "conversations": turns,
        "extra": json.dumps(extra, ensure_ascii=False) if extra else None,
    }


def _read(path: str, folder: ImageFolder | None, name: str) -> bytes:
    if folder is None:
        raise DataError(f"{name}: it has image {path}; --image_folder says where images are")
    try:
        return Path(folder.locate(path)).read_bytes()
    except (BadSampleError, OSError) as error:
        raise DataError(f"{name}: {error}") from error


def read_table(path: Path, images: Path | None) -> Iterator[tuple[str, Record]]:
    """The rows of a parquet file as LLaVA records with their names; embedded images are written into `images`."""
    try:
        with pq.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=_READ_ROWS):
                for row in batch.to_pylist():
                    name = f"{path}, row {number}"
                    yield name, _record({key: value for key, value in row.items() if value is not None}, images, name)
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error


def _record(row: Record, images: Path | None, name: str) -> Record:
    found = row.pop("images", row.pop("image", None))
    found = [] if found is None else found if isinstance(found, list) else [found]
    paths = [_store(image, images, name) for image in found]
    if paths:
        row["images"] = paths
    if form_of(row, name) == "messages":
        return from_messages(row, name)
    turns = [
        {"from": turn["from"], "value": turn.get("references") or turn.get("value")} for turn in row["conversations"]
    ]
    record: Record = {key: row[key] for key in ("id", "task") if key in row}
    if paths:
        record["image"] = paths[0] if len(paths) == 1 else paths
    rest = {key: value for key, value in row.items() if key not in (*_KNOWN, "images", "extra")}
    return record | rest | json.loads(row.get("extra") or "{}") | {"conversations": turns}


def _store(image: Any, images: Path | None, name: str) -> str:
    """Write an embedded image under its own path, or its hash where it has none; returns the path."""
    path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None
    raw = image if isinstance(image, bytes) else image_bytes(image) if isinstance(image, dict) else b""
    if not raw:
        if path:
            return str(path)
        raise DataError(f"{name}: an image has neither content nor path")
    if images is None:
        raise DataError(f"{name}: it has embedded images; --image_folder says where they are to be written")
    ending = image_ending(raw)
    if ending is None:
        raise DataError(f"{name}: an embedded image cannot be read")
    path = path or f"{hashlib.sha1(raw, usedforsecurity=False).hexdigest()}.{ending}"
    target, root = os.path.abspath(images / path), os.path.abspath(images)
    if os.path.isabs(path) or os.path.commonpath([target, root]) != root or target == root:
        raise DataError(f"{name}: the path {path} of an embedded image leads outside {images}")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    if not os.path.exists(target):
        Path(target).write_bytes(raw)
    elif Path(target).read_bytes() != raw:
        raise DataError(f"{name}: {target} is there already, with other content; give an empty --image_folder")
    return str(path)
