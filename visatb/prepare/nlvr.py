"""`visatb prepare nlvr`: five tasks from NLVR's development set (lil-lab/nlvr, CC-BY-4.0).

The published `dev.json` and pictures become `reasoning` (the human sentences, true or false) and four tasks whose
answers are in the structured scenes. Examples that share a sentence or a scene stay in one split.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, UnidentifiedImageError

from visatb.prepare.nlvr_tasks import (
    BOX,
    COLOURS,
    LAYOUTS,
    ORIGINAL,
    PERMUTATIONS,
    SHAPES,
    SIZES,
    STRUCTURED,
    Layout,
    Scene,
    Thing,
)
from visatb.prepare.source import SPLITS, PrepareError, Record, Source, Summary, record, write_tasks

VERSION = 1
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
PICTURES = {"train": 6, "val": 2, "test": 2}  # of an example's six orders of boxes
TASKS = ("reasoning", *STRUCTURED)
_GROUND = (128, 128, 128)


@dataclass(frozen=True)
class Example:
    """One line of dev.json: three boxes of objects as published, a sentence and whether it is true of them."""

    identifier: str
    directory: str
    sentence: str
    label: str
    boxes: tuple[Scene, ...]

    def scene(self, picture: int) -> Scene:
        """The objects as picture 0 to 5 shows them, from the first box to the third."""
        order = PERMUTATIONS[picture]
        return [
            Thing(slot, thing.shape, thing.colour, thing.x, thing.y, thing.side)
            for slot, box in enumerate(order)
            for thing in self.boxes[box]
        ]

    def published_name(self, picture: int) -> str:
        """The picture's path below the published folder."""
        return f"images/{self.directory}/dev-{self.identifier}-{picture}.png"


class Nlvr(Source):
    """NLVR's development set as five tasks."""

    help = "NLVR's development set as five tasks (needs its dev.json and images.tar or images/)"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--source", type=Path, required=True, help="folder with dev.json and images.tar or images/")
        parser.add_argument("--seed", type=int, default=0, help="draws other questions and splits (default 0)")
        parser.add_argument(
            "--layout",
            choices=list(LAYOUTS),
            default=ORIGINAL.name,
            help="original: 400 × 100 as published; square: the three boxes in a 220 × 220 square, for small towers",
        )

    def settings(self, args: argparse.Namespace) -> dict[str, Any]:
        return {"source": "nlvr", "version": VERSION, "seed": args.seed, "layout": args.layout}

    def write(self, args: argparse.Namespace, folder: Path) -> list[Summary]:
        examples = read_examples(args.source / "dev.json")
        layout = LAYOUTS[args.layout]
        splits = split(examples, args.seed)
        tasks: dict[tuple[str, str], list[Record]] = {(task, part): [] for task in TASKS for part in SPLITS}
        wanted: dict[str, str] = {}
        for part in SPLITS:
            for example in splits[part]:
                for picture in range(PICTURES[part]):
                    image = f"images/{example.identifier}-{picture}.png"
                    wanted[example.published_name(picture)] = image
                    for entry in questions(example, picture, image, args.seed, layout):
                        tasks[entry["task"], part].append(entry)
        write_images(args.source, wanted, folder, layout)
        return write_tasks(folder, tasks)


def read_examples(path: Path) -> list[Example]:
    """The examples of `dev.json` (one JSON object per line); PrepareError names a line that is not one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PrepareError(f"{path}: {error.strerror or error}; --source must hold NLVR's dev.json") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            examples.append(_example(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise PrepareError(f"{path}, line {number}: not an NLVR example ({error!r})") from error
    if not examples:
        raise PrepareError(f"{path}: holds no examples")
    return examples


def _example(content: dict[str, Any]) -> Example:
    identifier, directory = content["identifier"], str(content["directory"])
    if not re.fullmatch(r"\d+-\d+", identifier) or not re.fullmatch(r"\d+", directory):
        raise ValueError(f"identifier {identifier!r} in directory {directory!r}")
    if content["label"] not in ("true", "false"):
        raise ValueError(f"label {content['label']!r}")
    boxes = tuple([_thing(value) for value in box] for box in content["structured_rep"])
    if len(boxes) != 3 or not any(boxes):
        raise ValueError(f"{len(boxes)} boxes")
    return Example(identifier, directory, content["sentence"].strip(), content["label"], boxes)


def _thing(value: dict[str, Any]) -> Thing:
    shape, side = value["type"], value["size"]
    if shape not in SHAPES or side not in SIZES:
        raise ValueError(f"an object of type {shape!r} and size {side!r}")
    return Thing(0, shape, COLOURS[value["color"].lower()], value["x_loc"], value["y_loc"], side)


def split(examples: Sequence[Example], seed: int) -> dict[str, list[Example]]:
    """Examples by split. Those that share a sentence's number, its text, or a scene are kept together."""
    clusters = _clusters(examples)
    Random(f"nlvr {seed} split").shuffle(clusters)
    parts: dict[str, list[Example]] = {part: [] for part in SPLITS}
    for cluster in clusters:  # to the split that is furthest from its share
        part = min(SPLITS, key=lambda name: len(parts[name]) / SHARES[name])
        parts[part] += [examples[member] for member in cluster]
    return parts


def _clusters(examples: Sequence[Example]) -> list[list[int]]:
    parent = list(range(len(examples)))

    def root(member: int) -> int:
        while parent[member] != member:
            member = parent[member]
        return member

    first: dict[tuple[str, object], int] = {}
    for member, example in enumerate(examples):
        boxes = tuple(sorted(tuple(sorted(map(repr, box))) for box in example.boxes))
        text = " ".join(re.findall(r"\w+", example.sentence.lower()))
        for key in (("number", example.identifier.split("-")[0]), ("text", text), ("scene", boxes)):
            parent[root(member)] = root(first.setdefault(key, member))
    clusters: dict[int, list[int]] = {}
    for member in range(len(examples)):
        clusters.setdefault(root(member), []).append(member)
    return list(clusters.values())


def questions(example: Example, picture: int, image: str, seed: int, layout: Layout) -> Iterator[Record]:
    """One record per task on one picture; a task is left out where the scene singles no object out."""
    name = f"{example.identifier}-{picture}"
    sentence = example.sentence.rstrip(". ")
    yield record(f"reasoning-{name}", image, "reasoning", f"{sentence}. True or false?", example.label)
    scene = example.scene(picture)
    for task, ask in STRUCTURED.items():
        pair = ask(scene, Random(f"nlvr {seed} {task} {name}"), layout)
        if pair:
            yield record(f"{task}-{name}", image, task, *pair)


def write_images(source: Path, wanted: dict[str, str], folder: Path, layout: Layout) -> None:
    """Write the pictures `wanted` (published name → new path below `folder`) in a layout; PrepareError if one lacks."""
    (folder / "images").mkdir()
    missing = dict(wanted)
    for name, content in _pictures(source, wanted):
        target = folder / missing.pop(name)
        try:
            with Image.open(io.BytesIO(content)) as image:
                arrange(image.convert("RGB"), layout).save(target)
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise PrepareError(f"{source}: {name} is not a readable NLVR picture ({error})") from error
    if missing:
        raise PrepareError(f"{source}: {len(missing)} pictures are missing, such as {next(iter(missing))}")


def _pictures(source: Path, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """(published name, file content) of the pictures that are there, from images.tar or images/."""
    archive = source / "images.tar"
    if not archive.is_file():
        yield from ((name, (source / name).read_bytes()) for name in wanted if (source / name).is_file())
        return
    seen: set[str] = set()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile() and name in wanted and name not in seen:
                    seen.add(name)
                    content = tar.extractfile(member)
                    assert content is not None  # a regular file
                    yield name, content.read()
    except (tarfile.TarError, OSError) as error:
        raise PrepareError(f"{archive}: cannot be read ({error})") from error


def arrange(image: Image.Image, layout: Layout) -> Image.Image:
    """The published picture (400 × 100) in a layout. Raises ValueError for a picture of another size."""
    if image.size != (ORIGINAL.width, ORIGINAL.height):
        raise ValueError(f"{image.width} × {image.height} pixels instead of {ORIGINAL.width} × {ORIGINAL.height}")
    if layout == ORIGINAL:
        return image
    canvas = Image.new("RGB", (layout.width, layout.height), _GROUND)
    for (left, top), corner in zip(ORIGINAL.corners, layout.corners, strict=True):
        canvas.paste(image.crop((left, top, left + BOX, top + BOX)), corner)
    return canvas
