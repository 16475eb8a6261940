"""The same for NLVR: pictures like its own, drawn here (none of the published ones is used), boxes in a square.

Legend: P patches.
"""

from __future__ import annotations

from random import Random

import numpy as np
from alt_text import join_mentions
from PIL import Image, ImageDraw

from visatb.prepare.nlvr_tasks import BOX, COLOURS, SHAPES, SIZES, SQUARE, STRUCTURED, Scene, Thing

PIXELS, PATCH = 88, 8  # of 220 pixels 0.4: a box is five patches wide, the gap between boxes one
_SIDE = SQUARE.width * PATCH // PIXELS  # of a patch, in pixels of the picture
_STEPS = 101  # hundredths of the picture
_RGB = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
_BOX_COLOUR, _GROUND = (211, 211, 211), (128, 128, 128)
TEXT_TOKENS = 64

LABELS = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS),
    "size": len(SIZES),
    **dict.fromkeys(("x1", "y1", "x2", "y2"), _STEPS),
}


def picture(rng: Random) -> tuple[Scene, Image.Image]:
    """Three boxes of towers, or of scattered objects."""
    fill = _tower if rng.random() < 0.5 else _scatter
    scene = [thing for slot in range(3) for thing in fill(slot, rng)]
    image = Image.new("RGB", (SQUARE.width, SQUARE.height), _GROUND)
    pen = ImageDraw.Draw(image)
    for left, top in SQUARE.corners:
        pen.rectangle((left, top, left + BOX - 1, top + BOX - 1), fill=_BOX_COLOUR)
    for thing in scene:
        x1, y1, x2, y2 = thing.corners(SQUARE)
        fill_colour = _RGB[thing.colour]
        if thing.shape == "circle":
            pen.ellipse((x1, y1, x2 - 1, y2 - 1), fill=fill_colour)
        elif thing.shape == "triangle":
            pen.polygon([(x1, y2 - 1), (x2 - 1, y2 - 1), ((x1 + x2) // 2, y1)], fill=fill_colour)
        else:
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=fill_colour)
    return scene, image


def _tower(slot: int, rng: Random) -> Scene:
    colours = list(COLOURS.values())
    return [Thing(slot, "square", rng.choice(colours), 40, 80 - 21 * floor, 20) for floor in range(rng.randint(1, 4))]


def _scatter(slot: int, rng: Random) -> Scene:
    things: Scene = []
    for _ in range(rng.randint(1, 8)):
        side = rng.choice(list(SIZES))
        thing = Thing(
            slot, rng.choice(SHAPES), rng.choice(list(COLOURS.values())), _near_wall(side, rng), _near_wall(side, rng),
            side,
        )  # fmt: skip
        if all(_apart(thing, other) for other in things):
            things.append(thing)
    return things


def _near_wall(side: int, rng: Random) -> int:
    """A place along one axis; objects often touch a wall."""
    return rng.choice((0, BOX - side)) if rng.random() < 0.25 else rng.randint(0, BOX - side)


def _apart(a: Thing, b: Thing) -> bool:
    return a.x + a.side < b.x or b.x + b.side < a.x or a.y + a.side < b.y or b.y + b.side < a.y


def patch_labels(scene: Scene) -> np.ndarray:
    """int64[P, len(LABELS)]: the labels of the object that covers most of each patch."""
    rows = PIXELS // PATCH
    labels = np.zeros((rows, rows, len(LABELS)), dtype=np.int64)
    most = np.zeros((rows, rows))
    for thing in scene:
        x1, y1, x2, y2 = thing.corners(SQUARE)
        values = (
            1 + SHAPES.index(thing.shape),
            list(COLOURS.values()).index(thing.colour),
            list(SIZES).index(thing.side),
            *(int(f"{100 * value / SQUARE.width:.0f}") for value in (x1, y1, x2, y2)),
        )
        for row in range(y1 // _SIDE, -(-y2 // _SIDE)):
            tall = min(y2, (row + 1) * _SIDE) - max(y1, row * _SIDE)
            for column in range(x1 // _SIDE, -(-x2 // _SIDE)):
                covered = tall * (min(x2, (column + 1) * _SIDE) - max(x1, column * _SIDE))
                if covered > most[row, column]:
                    most[row, column], labels[row, column] = covered, values
    return labels.reshape(rows * rows, -1)


def alt_text(scene: Scene, rng: Random) -> str:
    """Mentions of objects in random order, each of some attributes in random order."""
    mentions = rng.sample([thing for thing in scene for _ in range(2)], 2 * len(scene))
    return join_mentions((_mention(thing, rng) for thing in mentions), TEXT_TOKENS)


def _mention(thing: Thing, rng: Random) -> str:
    attributes = rng.sample([thing.shape, thing.colour, SIZES[thing.side]], rng.choice((2, 3, 3)))
    attributes += rng.choice(([thing.where], [thing.box(SQUARE)], [thing.box(SQUARE)], []))
    rng.shuffle(attributes)
    return " ".join(attributes)


def training_texts() -> list[str]:
    """Texts that hold every word of the tasks (the human sentences' apart) and of the alt-text."""
    rng = Random("words")
    hundredths = " ".join(f"{step / 100:.2f}" for step in range(_STEPS))
    texts = [hundredths, " ".join(map(str, range(25))), "True or false? true false"]
    for _ in range(2000):
        scene, _ = picture(rng)
        texts.append(alt_text(scene, rng))
        pairs = [ask(scene, rng, SQUARE) for ask in STRUCTURED.values()]
        texts += [" ".join(pair) for pair in pairs if pair]
    return texts
