"""Annotation files that are ready: `{benchmark/task}(-mini|-plus-mini)_{train|val|test}-{size}.json`, as the paper's.

Every file so named is checked: as many records as its name says. The whole files of each task are taken over under our
names, one task each, every record with its `task`. The mini and plus-mini files are not: `visatb run` draws its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.names import SIZED, UNITS
from visatb.prepare.files import records
from visatb.prepare.output import Output, count
from visatb.prepare.source import SPLITS, PrepareError, Record

# Other names of tasks, in letters and digits only.
_ALIASES = {
    "RefCOCO-caption": ("refcaption", "refcococaption", "refcococap"),
    "RefCOCO-bbox": ("refbbox", "refcocobbox"),
    "MS-COCO": ("coco", "cococaption"),
    "TextCaps": ("textcap", "tcap"),
    "Image-Paragraph-Captioning": ("paragraphcaptioning", "pcap"),
    "COCO-GOI": ("goi",),
    "COCO-Text": ("text",),
    "ImageNet": ("inet",),
    "COCO-ITM": ("itm",),
    "e-SNLI-VE": ("snlive", "sve"),
    "Mocheg": ("moch",),
    "Shapes-VQA": ("shapes", "shap"),
    "ScienceQA": ("sqa",),
    "CLEVR": ("cle",),
    "NLVR": ("nl",),
    "Visual-Dialog": ("visdial", "visd"),
    "Multi30k": ("m30k",),
    "conversation": ("conv",),
    "detail": ("detaileddescription",),
    "complex_reasoning": ("complex", "reasoning"),
}


class ReadyFile(NamedTuple):
    """A file and what its name says; `exact` is false for a size rounded to thousands or millions."""

    path: Path
    task: str
    kind: str
    split: str
    size: float
    step: float

    def fits(self, number: int) -> bool:
        """Whether the name may say `number`: itself, or where it says 41k, whatever is cut or rounded to that."""
        return self.size - self.step / 2 <= number < self.size + self.step if self.step > 1 else number == self.size


def parse_name(path: Path) -> ReadyFile | None:
    """What a file's name says; None where it is not so named."""
    match = SIZED.fullmatch(path.stem)
    if match is None or path.suffix not in (".json", ".jsonl"):
        return None
    unit = UNITS[match["unit"].lower()]
    decimals = len(match["size"].partition(".")[2])
    step = unit / 10**decimals if unit > 1 else 1
    return ReadyFile(path, match["task"], match["kind"] or "", match["split"], float(match["size"]) * unit, step)


def write(source: Path, output: Output, tasks: Sequence[str], benchmark: str) -> None:
    """Check all ready files in `source`, then take over those of the tasks; PrepareError where one is missing."""
    found_files = _named(source)
    for file in found_files:
        check_size(file)
    for task in tasks:
        found = {file.split: file for file in found_files if not file.kind and _is(file.task, task)}
        whole = {file.split: file for file in found_files if not file.kind and _plain(file.task) == benchmark}
        if "train" not in found | whole:
            raise PrepareError(
                f"{source} holds no {task}_train-SIZE.json (nor {benchmark}_train-SIZE.json); leave it out with --tasks"
            )
        for split in SPLITS:
            if split in found:
                output.write(task, split, _of_task(found[split].path, task))
            elif split in whole:
                output.write(task, split, _labelled(whole[split].path, task))


def check_size(file: ReadyFile) -> int:
    """The number of records of a file; PrepareError where its name says another."""
    number = count(records(file.path))
    if not file.fits(number):
        raise PrepareError(
            f"{file.path} holds {number} records, but its name says {file.size:g}: it is cut off or another file; "
            "fetch it again, or name it by what it holds"
        )
    return number


def files(source: Path) -> list[Path]:
    """The files so named in `source`; PrepareError where there is none."""
    return [file.path for file in _named(source)]


def _named(source: Path) -> list[ReadyFile]:
    paths = sorted(path for pattern in ("*.json*", "*/*.json*") for path in source.glob(pattern))
    named = [file for file in map(parse_name, paths) if file is not None]
    if not named:
        raise PrepareError(f"{source} holds no file named {{task}}_{{train|val|test}}-{{size}}.json")
    return named


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is(name: str, task: str) -> bool:
    return _plain(name) in (_plain(task), *_ALIASES.get(task, ()))


def _of_task(path: Path, task: str) -> Iterator[Record]:
    for record in records(path):
        if not isinstance(record.get("conversations"), list):
            raise PrepareError(f"{path}, record {record.get('id')}: has no `conversations`")
        yield record


def _labelled(path: Path, task: str) -> Iterator[Record]:
    """The records of a benchmark's common file that name the task."""
    for record in records(path):
        if record.get("task") is not None and _is(str(record["task"]), task):
            yield record
