"""Small experiments on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}


def write_task(folder: Path, task: str, counts: dict[str, int], seed: int = 0) -> dict[str, str]:
    """Data of a task that asks for the colour of a square; returns its files by split."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    files = {}
    for split, count in counts.items():
        records = []
        for index in range(count):
            colour = list(COLOURS)[random.integers(len(COLOURS))]
            image = folder / "images" / f"{colour}-{split}.png"
            if not image.exists():
                square = Image.new("RGB", (28, 28), COLOURS[colour])
                square.putpixel((0, 0), (list(counts).index(split), 0, 0))  # no split's image is another's
                square.save(image)
            question = {"from": "human", "value": f"<image>\nWhat colour has the {task}?"}
            turns = [question, {"from": "gpt", "value": colour}]
            records.append({"id": f"{task}-{split}-{index}", "image": image.name, "conversations": turns})
        files[split] = f"{task}_{split}-{count}.json"
        (folder / files[split]).write_text(json.dumps(records))
    return files


def guard(folder: Path, limit: float, name: str = "calm") -> dict[str, Any]:
    """A task with validation data only, as an experiment file names it."""
    return {"val": write_task(folder, name, {"val": 12}, seed=9)["val"], "metric": "em", "guard": limit}


def write_experiment(folder: Path, tasks: dict[str, dict[str, Any]], **settings: Any) -> Path:
    """An experiment file; each task gets data unless it names files of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for number, (name, task) in enumerate(tasks.items()):
        splits = {"train": 16} if "weight" in task else {"train": 16, "val": 12, "test": 10}
        files = {} if "train" in task or "guard" in task else write_task(folder, name, splits, number)
        written[name] = {**files, **({} if "weight" in task else {"metric": "em"}), **task}
    content = {"model": {"path": "somewhere/7b"}, "tasks": written, "image_folder": "images", **settings}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
