"""`visatb prepare tiny`: five small tasks on rendered pictures, made in seconds and the same every time."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from visatb.prepare.scenes import (
    COLOURS,
    SHAPES,
    Item,
    draw_chart_items,
    draw_scene_items,
    render,
)
from visatb.prepare.source import SPLITS, Record, Source, Summary, record, write_tasks

VERSION = 1  # raise it when the data changes
VAL_SIZE, TEST_SIZE = 200, 400

QuestionAnswer = tuple[str, str]


class Task(NamedTuple):
    """A task: how many training samples, its pictures, and one question with its answer on such a picture."""

    train_size: int
    draw: Callable[[Random], list[Item]]
    ask: Callable[[list[Item], Random], QuestionAnswer]


def caption(items: list[Item], rng: Random) -> QuestionAnswer:
    """All shapes in reading order with their places."""
    return "Describe the picture.", " and ".join(f"a {item.name} at the {item.place}" for item in items)


def region(items: list[Item], rng: Random) -> QuestionAnswer:
    """The shape in a given box."""
    item = rng.choice(items)
    return f"What is in the region {item.box}?", f"a {item.name} at the {item.place}"


def ground(items: list[Item], rng: Random) -> QuestionAnswer:
    """The box of a named shape; no two shapes of a scene have one name."""
    item = rng.choice(items)
    return f"Where is the {item.name}?", item.box


def vqa(items: list[Item], rng: Random) -> QuestionAnswer:
    """One of five kinds of questions with one-word answers."""
    return rng.choice((_how_many, _which_colour, _which_shape, _is_there, _is_left))(items, rng)


def chart(items: list[Item], rng: Random) -> QuestionAnswer:
    """A bar's value, the tallest or shortest bar, or which of two is taller."""
    kind = rng.random()
    if kind < 0.5:
        bar = rng.choice(items)
        return f"What is the value of the {bar.colour} bar?", str(bar.height)
    if kind < 0.75:
        word, pick = rng.choice((("tallest", max), ("shortest", min)))
        return f"What colour is the {word} bar?", pick(items, key=lambda bar: bar.height).colour
    first, second = rng.sample(items, 2)
    answer = "yes" if first.height > second.height else "no"
    return f"Is the {first.colour} bar taller than the {second.colour} bar?", answer


def _how_many(items: list[Item], rng: Random) -> QuestionAnswer:
    if rng.random() < 0.5:
        colour = rng.choice(items).colour if rng.random() < 0.8 else rng.choice(list(COLOURS))
        return f"How many {colour} shapes are there?", str(sum(item.colour == colour for item in items))
    shape = rng.choice(SHAPES)
    return f"How many {shape}s are there?", str(sum(item.shape == shape for item in items))


def _which_colour(items: list[Item], rng: Random) -> QuestionAnswer:
    item = rng.choice(items)
    alone = [other for other in items if (other.size, other.shape) == (item.size, item.shape)] == [item]
    if not alone:
        return _is_there(items, rng)
    return f"What colour is the {item.size} {item.shape}?", item.colour


def _which_shape(items: list[Item], rng: Random) -> QuestionAnswer:
    item = rng.choice(items)
    alone = [other for other in items if other.colour == item.colour] == [item]
    if not alone:
        return _is_there(items, rng)
    return f"What shape is {item.colour}?", item.shape


def _is_there(items: list[Item], rng: Random) -> QuestionAnswer:
    item = rng.choice(items)
    colour, shape = item.colour, item.shape
    if rng.random() < 0.5:
        colour, shape = rng.choice((rng.choice(list(COLOURS)), colour)), rng.choice(SHAPES)
    found = any((other.colour, other.shape) == (colour, shape) for other in items)
    return f"Is there a {colour} {shape}?", "yes" if found else "no"


def _is_left(items: list[Item], rng: Random) -> QuestionAnswer:
    first, second = rng.sample(items, 2)
    middles = [2 * item.x + item.width for item in (first, second)]
    if middles[0] == middles[1]:
        return _is_there(items, rng)
    answer = "yes" if middles[0] < middles[1] else "no"
    return f"Is the {first.name} left of the {second.name}?", answer


TASKS = {
    "caption": Task(1200, draw_scene_items, caption),
    "region": Task(1200, draw_scene_items, region),
    "vqa": Task(2400, draw_scene_items, vqa),
    "chart": Task(1200, draw_chart_items, chart),
    "ground": Task(1600, draw_scene_items, ground),
}


class Tiny(Source):
    """The tiny experiment's data: every picture is new to its task and split."""

    help = "five tasks on rendered 48 × 48 pictures (the tiny experiment; needs no source)"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seed", type=int, default=0, help="draws other data (default 0)")
        parser.add_argument("--scale", type=float, default=1.0, help="multiplies every size (default 1)")

    def settings(self, args: argparse.Namespace) -> dict[str, Any]:
        return {"source": "tiny", "version": VERSION, "seed": args.seed, "scale": args.scale}

    def write(self, args: argparse.Namespace, folder: Path) -> list[Summary]:
        (folder / "images").mkdir()
        tasks = {}
        seen: set[tuple[Item, ...]] = set()
        for name, task in TASKS.items():
            for split, size in zip(SPLITS, (task.train_size, VAL_SIZE, TEST_SIZE), strict=True):
                rng = Random(f"tiny {args.seed} {name} {split}")
                count = max(2, round(size * args.scale))
                tasks[name, split] = [draw_record(folder, name, split, n, task, rng, seen) for n in range(count)]
        return write_tasks(folder, tasks)


def draw_record(
    folder: Path, name: str, split: str, number: int, task: Task, rng: Random, seen: set[tuple[Item, ...]]
) -> Record:
    """A record of a scene that is not among `seen`, to which it is added; its picture is written to `folder`."""
    items = task.draw(rng)
    while tuple(items) in seen:  # no scene is in two splits
        items = task.draw(rng)
    seen.add(tuple(items))
    image = f"images/{name}-{split}-{number:05d}.png"
    render(items, rng).save(folder / image)
    return record(f"{name}-{split}-{number:05d}", image, name, *task.ask(items, rng))
