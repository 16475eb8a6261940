"""NLVR scenes (Suhr et al. 2017) and the questions that their structured descriptions answer.

A scene is three boxes of 100 × 100 pixels; an object's x, y and size are pixels inside its box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from random import Random

BOX = 100
ORDINALS = ("first", "second", "third")
COLOURS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}
SHAPES = ("square", "circle", "triangle")
SIZES = {10: "small", 20: "medium", 30: "large"}
PERMUTATIONS = tuple(permutations(range(3)))
"""Picture k of an example shows its boxes in this order."""

QuestionAnswer = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """Where the three boxes lie in a picture of `width` × `height` pixels."""

    name: str
    width: int
    height: int
    corners: tuple[tuple[int, int], ...]


ORIGINAL = Layout("original", 400, 100, ((0, 0), (150, 0), (300, 0)))
SQUARE = Layout("square", 220, 220, ((0, 0), (120, 0), (0, 120)))
LAYOUTS = {layout.name: layout for layout in (ORIGINAL, SQUARE)}


@dataclass(frozen=True)
class Thing:
    """One object; `slot` is the box (0 to 2) it is seen in, the rest as published, in pixels of its box."""

    slot: int
    shape: str
    colour: str
    x: int
    y: int
    side: int

    @property
    def name(self) -> str:
        """Such as `small black circle`."""
        return f"{SIZES[self.side]} {self.colour} {self.shape}"

    @property
    def where(self) -> str:
        """Such as `in the first box`."""
        return f"in the {ORDINALS[self.slot]} box"

    def corners(self, layout: Layout) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels of the picture."""
        left, top = layout.corners[self.slot]
        return left + self.x, top + self.y, left + self.x + self.side, top + self.y + self.side

    def box(self, layout: Layout) -> str:
        """`[x1, y1, x2, y2]` as fractions of the picture, two decimals."""
        x1, y1, x2, y2 = self.corners(layout)
        fractions = (x1 / layout.width, y1 / layout.height, x2 / layout.width, y2 / layout.height)
        return "[" + ", ".join(f"{value:.2f}" for value in fractions) + "]"


Scene = list[Thing]


def counting(scene: Scene, rng: Random, layout: Layout) -> QuestionAnswer:
    """How many of a kind there are, in the picture or in one box."""
    colour, shape = rng.choice(list(COLOURS.values())), rng.choice(SHAPES)
    kind = rng.randrange(4)
    if kind == 0:
        slot = rng.randrange(3)
        number = sum(thing.slot == slot for thing in scene)
        return f"How many objects are in the {ORDINALS[slot]} box?", str(number)
    if kind == 1:
        return f"How many {shape}s are there?", str(sum(thing.shape == shape for thing in scene))
    if kind == 2:
        return f"How many {colour} objects are there?", str(sum(thing.colour == colour for thing in scene))
    number = sum((thing.colour, thing.shape) == (colour, shape) for thing in scene)
    return f"How many {colour} {shape}s are there?", str(number)


def colour(scene: Scene, rng: Random, layout: Layout) -> QuestionAnswer | None:
    """The colour of an object that its box, and its shape, size or height there, single out."""
    thing = rng.choice(scene)
    words = _single_out(thing, scene, (lambda t: t.shape, lambda t: f"{SIZES[t.side]} {t.shape}", lambda t: "object"))
    return (f"What colour is the {words} {thing.where}?", thing.colour) if words else None


def grounding(scene: Scene, rng: Random, layout: Layout) -> QuestionAnswer | None:
    """The box of an object singled out the same way."""
    thing = rng.choice(scene)
    words = _single_out(thing, scene, (lambda t: t.name,))
    return (f"Where is the {words} {thing.where}?", thing.box(layout)) if words else None


def region(scene: Scene, rng: Random, layout: Layout) -> QuestionAnswer:
    """What lies in a given box."""
    thing = rng.choice(scene)
    return f"What is in the region {thing.box(layout)}?", f"a {thing.name} {thing.where}"


STRUCTURED: dict[str, Callable[[Scene, Random, Layout], QuestionAnswer | None]] = {
    "counting": counting,
    "colour": colour,
    "grounding": grounding,
    "region": region,
}
"""Tasks made from the structured scenes; None where a scene does not single an object out."""


def _single_out(thing: Thing, scene: Scene, names: tuple[Callable[[Thing], str], ...]) -> str | None:
    """A description that fits `thing` alone in its box, with `highest` or `lowest` where the name is not enough."""
    beside = [other for other in scene if other.slot == thing.slot and other != thing]
    for name in names:
        alike = [other.y for other in beside if name(other) == name(thing)]
        if not alike:
            return name(thing)
        if thing.y < min(alike):
            return f"highest {name(thing)}"
        if thing.y > max(alike):
            return f"lowest {name(thing)}"
    return None
