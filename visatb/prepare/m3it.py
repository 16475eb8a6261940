"""`visatb prepare m3it`: the 17 tasks of the paper's M³IT Benchmark from M³IT's files (docs/data.md).

JSON lines or parquet with embedded images, one folder for each of M³IT's data sets. Where a set has no test split, its
validation split is halved at random (paper, Appendix A).
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visatb.prepare.benchmark import Benchmark
from visatb.prepare.embedded import image_bytes, image_ending
from visatb.prepare.files import records, text
from visatb.prepare.output import IMAGES, Output, count, pick
from visatb.prepare.source import PrepareError, Record

logger = logging.getLogger(__name__)

# Task → the names of its folder in M³IT, in letters and digits only.
FOLDERS = {
    "MS-COCO": ("coco",),
    "TextCaps": ("textcap", "textcaps"),
    "Image-Paragraph-Captioning": ("imageparagraphcaptioning", "paragraphcaptioning"),
    "COCO-GOI": ("cocogoi",),
    "COCO-Text": ("cocotext",),
    "ImageNet": ("imagenet",),
    "COCO-ITM": ("cocoitm",),
    "e-SNLI-VE": ("snlive", "esnlive"),
    "Mocheg": ("mocheg",),
    "Shapes-VQA": ("shapes", "shapesvqa"),
    "OCRVQA": ("ocrvqa",),
    "GQA": ("gqa",),
    "ScienceQA": ("scienceqa",),
    "CLEVR": ("clevr",),
    "NLVR": ("nlvr",),
    "Visual-Dialog": ("visualdialog", "visdial"),
    "Multi30k": ("multi30k",),
}
_ENDINGS = (".jsonl", ".json", ".parquet")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
_IMAGE_FIELDS = ("image_base64_str", "image_str", "images", "image")
_ROWS = 16  # of a parquet batch; with images, a row can take megabytes
_DEPTH = 5


class M3IT(Benchmark):
    """17 tasks in 5 groups, 1.2 million training samples at full size; images are unpacked into `images/`."""

    help = "the paper's M³IT Benchmark, from M³IT's JSON lines or parquet files with their images"
    name = "m3it"
    tasks = tuple(FOLDERS)

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        super().arguments(parser)
        parser.set_defaults(missing="drop")  # an embedded image that cannot be read will never be there

    def files(self, args: argparse.Namespace) -> list[Path]:
        found = find_splits(args.source)
        for task in args.tasks:
            splits = found.get(task, {})
            absent = [split for split in ("train", "val") if split not in splits]
            if absent:
                raise PrepareError(
                    f"{args.source} holds no {' and no '.join(absent)} file of {task} (a folder {FOLDERS[task][0]} of "
                    ".jsonl or .parquet files that name their split); put it there, or leave the task out with --tasks"
                )
        return [file for task in args.tasks for files in found[task].values() for file in files]

    def image_folder(self, args: argparse.Namespace, folder: Path) -> Path:
        (folder / IMAGES).mkdir()
        return folder / IMAGES

    def make(self, args: argparse.Namespace, output: Output) -> None:
        found = find_splits(args.source)
        for task in args.tasks:
            splits = found[task]
            write_entries(output, task, "train", entries(splits["train"]))
            if "test" in splits:
                for split in ("val", "test"):
                    write_entries(output, task, split, entries(splits[split]))
                continue
            total = count(entries(splits["val"]))
            half = output.parts(total, (total // 2,), f"{task} val")
            for number, split in enumerate(("val", "test")):
                write_entries(output, task, split, pick(entries(splits["val"]), half == number))


def find_splits(source: Path) -> dict[str, dict[str, list[Path]]]:
    """Task → split → files, by the names of folders and files under `source`."""
    tasks = {name: task for task, names in FOLDERS.items() for name in names}
    found: dict[str, dict[str, list[Path]]] = {}
    for folder, folders, names in os.walk(source, followlinks=True):
        inner = Path(folder).relative_to(source).parts
        folders[:] = sorted(folders) if len(inner) < _DEPTH else []
        for name in sorted(name for name in names if name.endswith(_ENDINGS)):
            parts = (*inner, name.partition(".")[0])
            task = next((tasks[plain] for plain in map(_plain, reversed(parts)) if plain in tasks), None)
            split = next((named for named in map(_split, reversed(parts)) if named), None)
            if task and split:
                found.setdefault(task, {}).setdefault(split, []).append(Path(folder) / name)
    return found


def _plain(name: str) -> str:
    """A folder's or file's name without its split, in letters and digits."""
    words = [word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in _SPLITS]
    return "".join(words)


def _split(name: str) -> str | None:
    words = re.findall(r"[a-z]+", name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def entries(files: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """M³IT's records with a name each (file and place), one at a time."""
    for file in files:
        rows = _parquet(file) if file.suffix == ".parquet" else records(file)
        for number, entry in enumerate(rows):
            yield f"{file.stem}-{number}", entry


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_ROWS):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise PrepareError(f"{file} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error


def write_entries(output: Output, task: str, split: str, found: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Write one split; records without a question or an answer are left out and counted in the log."""
    blank = 0

    def converted() -> Iterator[Record]:
        nonlocal blank
        for name, entry in found:
            record = to_record(name, entry, output.images, task)
            blank += record is None
            if record is not None:
                yield record

    output.write(task, split, converted())
    if blank:
        logger.info("%s, %s: %d records without a question or an answer left out", task, split, blank)


def to_record(name: str, entry: dict[str, Any], images: Path, task: str) -> Record | None:
    """A LLaVA record of one of M³IT's; its images are written into `images`, each content once.

    None where it has no question or no answer; PrepareError where it lacks M³IT's fields.
    """
    if "outputs" not in entry or not {"instruction", "inputs"} & set(entry):
        raise PrepareError(f"{name}: not a record of M³IT: it has {', '.join(entry)}, not instruction, inputs, outputs")
    question = "\n".join(part for part in (text(entry.get("instruction")), text(entry.get("inputs"))) if part)
    answer = text(entry["outputs"])
    if not question or not answer:
        return None
    paths = [_store(content, images, task) for content in _contents(entry)]
    marks = "<image>\n" * len(paths)
    turns = [{"from": "human", "value": marks + question}, {"from": "gpt", "value": answer}]
    record: Record = {"id": name, "conversations": turns}
    if paths:
        record["image"] = paths[0] if len(paths) == 1 else paths
    return record


def _contents(entry: dict[str, Any]) -> list[Any]:
    value: Any = next((entry[name] for name in _IMAGE_FIELDS if entry.get(name)), [])
    return list(value) if isinstance(value, list | tuple) else [value]


def _store(content: Any, images: Path, task: str) -> str:
    """Write an image under its hash; returns its path, which is not there if the content is no image."""
    raw = image_bytes(content)
    name = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    ending = image_ending(raw)
    if ending is None:
        return f"{task}/unreadable-{name[:12]}"
    path = f"{task}/{name[:2]}/{name}.{ending}"
    target = images / path
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(raw)
    return path
