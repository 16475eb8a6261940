"""Reading prepared folders in tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llava.data.records import RawRecord, check_record
from visatb.commands.prepare import main


def run(name: str, source: Path, output: Path, *arguments: object) -> int:
    """The command's exit code."""
    return main([name, "--source", str(source), "--output", str(output), *map(str, arguments)])


def load(folder: Path, task: str, split: str) -> list[dict[str, Any]]:
    """A task's records; the size in the file's name is their number."""
    (file,) = folder.glob(f"{task}_{split}-*.json")
    records: list[dict[str, Any]] = json.loads(file.read_text())
    assert file.stem.endswith(f"-{len(records)}")
    return records


def pairs(record: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Questions and answers."""
    turns = record["conversations"]
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
    values = [turn["value"] for turn in turns]
    return list(zip(values[::2], values[1::2], strict=True))


def check_training_files(folder: Path, tasks: tuple[str, ...]) -> None:
    """Every training record passes the check that training makes, and its images are there."""
    for task in tasks:
        for place, content in enumerate(load(folder, task, "train")):
            record = check_record(RawRecord(place, content, 0), None, [task])
            assert all((folder / "images" / image).is_file() for image in record.images)


def shared_data(name: str) -> Path:
    """Published data next to the checkout; skips the test where there is none."""
    root = Path(os.environ.get("VISATB_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
    if not (root / name).is_dir():
        pytest.skip(f"no published data in {root / name}; VISATB_SHARED_DATA names its folder")
    return root / name
