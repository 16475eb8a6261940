"""What every prepared data set shares: task files, an image folder, a summary, all of it there or none of it.

A prepared folder holds `{task}_{split}-{size}.json` for each task and split, `images/` where the source brings its own,
and `prepared.json`: what it was made from, and the summary.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.files import move_into_place, write_json, write_records
from llava.data.records import Record

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MARKER = "prepared.json"


class PrepareError(ValueError):
    """Bad input of a preparation; the message names the file and what would mend it."""


@dataclass(frozen=True)
class Summary:
    """Counts of one task and split."""

    task: str
    split: str
    file: str
    samples: int
    turns: int
    images: int
    mean_answer_words: float
    images_missing: int = 0


class Source(ABC):
    """One data set. `arguments` and `settings` say what its output depends on."""

    help: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 - a source may need none
        """Add the source's own arguments."""

    @abstractmethod
    def settings(self, args: argparse.Namespace) -> dict[str, Any]:
        """JSON values that, taken together, decide the output; equal settings are not prepared twice."""

    @abstractmethod
    def write(self, args: argparse.Namespace, folder: Path) -> list[Summary]:
        """Write everything into the empty `folder`."""


def record(name: str, image: str, task: str, question: str, answer: str | Sequence[str]) -> Record:
    """A LLaVA record of one question on one image; `answer` may be a list of references (validation and test)."""
    return {
        "id": name,
        "image": image,
        "task": task,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer if isinstance(answer, str) else list(answer)},
        ],
    }


def write_tasks(folder: Path, tasks: Mapping[tuple[str, str], Sequence[Record]]) -> list[Summary]:
    """Write `{task}_{split}-{size}.json` for each (task, split); PrepareError if one is empty."""
    summaries = []
    for (task, split), records in tasks.items():
        if not records:
            raise PrepareError(f"task {task}: nothing to put into {split}")
        file = folder / f"{task}_{split}-{len(records)}.json"
        write_records(file, records)
        summaries.append(summarise(task, split, file.name, records))
    return summaries


def summarise(task: str, split: str, file: str, records: Iterable[Record]) -> Summary:
    """Counts of the records of one file."""
    turns = samples = words = 0
    images: set[str] = set()
    for entry in records:
        samples += 1
        answers = [turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"]
        turns += len(answers)
        words += sum(len((text if isinstance(text, str) else text[0]).split()) for text in answers)
        images.add(entry.get("image", ""))
    return Summary(task, split, file, samples, turns, len(images - {""}), words / max(turns, 1))


def prepare(source: Source, args: argparse.Namespace, output: Path, overwrite: bool = False) -> list[Summary]:
    """Write a data set into `output`, whole or not at all; what is there with equal settings is kept.

    Raises PrepareError where `output` holds anything else, unless `overwrite` is set and it was prepared by us.
    """
    settings = source.settings(args)
    found = _read_marker(output)
    if found is not None and found.get("settings") == settings and not overwrite:
        logger.info("%s is prepared already", output)
        return [Summary(**row) for row in found["summary"]]
    if output.exists() and any(output.iterdir()) and not (overwrite and found is not None):
        why = "was prepared with other settings (--overwrite replaces it)" if found else "is not empty"
        raise PrepareError(f"{output} {why}; give another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        temporary.chmod(0o755)
        summaries = source.write(args, temporary)
        marker = {"settings": settings, "summary": [vars(summary) for summary in summaries]}
        write_json(temporary / MARKER, marker)
        if output.exists():
            shutil.rmtree(output)
        move_into_place(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return summaries


def _read_marker(output: Path) -> dict[str, Any] | None:
    if output.exists() and not output.is_dir():
        raise PrepareError(f"{output} is a file; --output must be a folder")
    try:
        found = json.loads((output / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
