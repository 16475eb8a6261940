"""The predictions that the page shows: some questions of each task, the same ones for every model, with images."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from eval.answers import Sample, identify, read_answers
from eval.errors import EvaluationError
from eval.metrics import find_measure
from eval.repeats import split_repeat
from llava.data.errors import BadSampleError
from llava.data.images import ImageFolder
from visatb.report.load import Run, is_proxy

logger = logging.getLogger(__name__)

LONGEST_TEXT = 1200
SIDES = (320, 224, 160, 112, 80, 48)  # pixels of a thumbnail's longer side, tried in turn
SPLITS = ("test", "val")


@dataclass
class _Page:
    """The questions of one task on one split, by id, with every model's answer."""

    task: str
    split: str
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[str, list[str]] = field(default_factory=dict)
    total: int = 0


def collect(run: Run, per_task: int, image_bytes: int) -> tuple[dict[str, Any], list[str]]:
    """The browser's data as JSON (see report.js), and notes on what could not be shown.

    `per_task`: questions of each task and split; `image_bytes`: all thumbnails together, before base64.
    """
    pages: dict[tuple[str, str], _Page] = {}
    models: list[str] = []
    notes: list[str] = []
    for path in sorted((run.folder / "answers").rglob("*.json")):
        try:
            samples = read_answers(path)
            identity = identify(path, samples)
        except EvaluationError as error:
            notes.append(f"left out of the predictions: {error}")
            continue
        model, page_key = identity["model"], (identity["split"], identity["task"])
        page = pages.setdefault(page_key, _Page(identity["task"], identity["split"]))
        models += [model] if model not in models else []
        _add(run, page, model, samples, per_task)
    order = {task: index for index, task in enumerate(run.tasks)}
    shown = sorted(pages.values(), key=lambda page: (page.split not in SPLITS[:1], order.get(page.task, 99), page.task))
    images, missing = _thumbnails(shown, _image_folders(run), image_bytes)
    if missing:
        notes.append(f"{missing} images of the predictions were not found or could not be read")
    for page in shown:
        for key, question in page.questions.items():
            question["images"] = [images[name][0] for name in page.images[key] if name in images]
    rank = {name: index for index, name in enumerate(run.methods)}
    models.sort(key=lambda name: (is_proxy(name), rank.get(split_repeat(name)[0].partition(":")[0], len(rank)), name))
    data = {
        "models": models,
        "finals": [model for model in models if not is_proxy(model)],
        "images": [uri for _, uri in sorted(images.values())],
        "pages": [_as_json(run, page) for page in shown],
    }
    return data, notes


def _add(run: Run, page: _Page, model: str, samples: Sequence[Sample], per_task: int) -> None:
    if not page.questions:
        page.total = len(samples)
        for sample in _pick(samples, per_task):
            image = sample.record.get("image") or []
            page.images[sample.id] = [str(name) for name in (image if isinstance(image, list) else [image])]
            page.questions[sample.id] = {
                "id": sample.id,
                "question": _cut(sample.question.replace("<image>", "").strip()),
                "truths": [_cut(text) for text in sample.references[:5]],
                "answers": {},
            }
    cells = run.scores.get((page.split, page.task, model), [])
    scores = dict(zip(cells[0].ids, cells[0].values, strict=True)) if cells else {}
    for sample in samples:
        if sample.id in page.questions:
            page.questions[sample.id]["answers"][model] = [_cut(sample.prediction), scores.get(sample.id)]


def _pick(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples chosen by their ids alone, whatever was answered; in the file's order."""
    ranked = sorted(samples, key=lambda sample: hashlib.sha256(sample.id.encode()).digest())
    chosen = {sample.id for sample in ranked[:count]}
    return [sample for sample in samples if sample.id in chosen]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " […]"


def _as_json(run: Run, page: _Page) -> dict[str, Any]:
    cells = next((cells for (s, t, _), cells in run.scores.items() if (s, t) == (page.split, page.task)), [])
    measure = find_measure(cells[0].metric) if cells else None
    return {
        "task": page.task,
        "split": page.split,
        "total": page.total,
        "metric": measure.short if measure else None,
        "bounded": measure is not None and measure.percent,
        "higher": cells[0].higher_is_better if cells else True,
        "questions": list(page.questions.values()),
    }


def _image_folders(run: Run) -> list[Path]:
    given: list[Any] = [run.experiment.image_folder]
    given += [card.get("arguments", {}).get("image_folder") for card in run.cards.values()]
    folders = [Path(name) for name in dict.fromkeys(name for name in given if isinstance(name, str))]
    known = [path if path.is_absolute() else run.folder / path for path in folders] + folders
    return known or [run.folder]


def _thumbnails(
    pages: Iterable[_Page], folders: Sequence[Path], image_bytes: int
) -> tuple[dict[str, tuple[int, str]], int]:
    """Image name → (number, data URI), and how many were not to be had; together at most `image_bytes` bytes."""
    names = list(dict.fromkeys(name for page in pages for images in page.images.values() for name in images))
    found: dict[str, tuple[int, str]] = {}
    left, missing = image_bytes, 0
    for index, name in enumerate(names):
        share = left // (len(names) - index)
        try:
            content = _thumbnail(name, folders, share)
        except (BadSampleError, OSError) as error:
            logger.warning("image %s cannot be shown: %s", name, error)
            missing += 1
            continue
        if content is None:
            continue
        left -= len(content)
        found[name] = (len(found), "data:image/webp;base64," + base64.b64encode(content).decode())
    return found, missing


def _open(name: str, folders: Sequence[Path]) -> Image.Image:
    """The image as the model saw it, from the first folder that it lies in, links followed; BadSampleError if none."""
    failed: BadSampleError | None = None
    for folder in folders:
        try:
            return ImageFolder(folder).open(name)
        except BadSampleError as error:
            failed = error if failed is None or failed.reason == "missing_image" else failed
    raise failed or BadSampleError("missing_image", "no image folder is known")


def _thumbnail(name: str, folders: Sequence[Path], most: int) -> bytes | None:
    """The largest WebP of an image within `most` bytes, None if not even the smallest fits."""
    image = _open(name, folders)
    for side in SIDES:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "WEBP", quality=78, lossless=max(small.size) <= 64)
        if stream.tell() <= most:
            return stream.getvalue()
    return None
