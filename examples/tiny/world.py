"""What the base model is made from: pictures, a label for each patch of them, and alt-text in random order.

Legend: n pictures, P patches.
"""

from __future__ import annotations

from random import Random

import numpy as np
from alt_text import join_mentions
from PIL import Image

from visatb.prepare.scenes import BAR, COLOURS, SHAPES, UNITS, Item, draw_chart_items, draw_scene_items, render
from visatb.prepare.tiny import TASKS

PIXELS, PATCH = 48, 8
TEXT_TOKENS = 54
_PATCH_UNITS = 2  # units of the scene per side of a patch
_KINDS = (*SHAPES, BAR)

# what the tower must tell of each patch, and how many values it has; the first is 0 for bare ground
LABELS = {"shape": len(_KINDS) + 1, "colour": len(COLOURS), **dict.fromkeys(("x1", "y1", "x2", "y2"), UNITS + 1)}


def picture(rng: Random) -> tuple[list[Item], Image.Image]:
    """A new scene (3 of 4) or chart."""
    items = (draw_chart_items if rng.random() < 0.25 else draw_scene_items)(rng)
    return items, render(items, rng)


def patch_labels(items: list[Item]) -> np.ndarray:
    """int64[P, len(LABELS)]: the labels of the item that covers most of each patch."""
    side = UNITS // _PATCH_UNITS
    labels = np.zeros((side, side, len(LABELS)), dtype=np.int64)
    most = np.zeros((side, side))
    for item in items:
        values = (
            1 + _KINDS.index(item.shape),
            list(COLOURS).index(item.colour),
            *(item.x, item.y, item.x + item.width, item.y + item.height),
        )
        for row in range(side):
            tall = _overlap(row * _PATCH_UNITS, item.y, item.height)
            for column in range(side):
                covered = tall * _overlap(column * _PATCH_UNITS, item.x, item.width)
                if covered > most[row, column]:
                    most[row, column], labels[row, column] = covered, values
    return labels.reshape(side * side, -1)


def alt_text(items: list[Item], rng: Random) -> str:
    """Up to two mentions of each item in random order, each of some attributes in random order."""
    mentions = rng.sample([item for item in items for _ in range(2)], 2 * len(items))
    return join_mentions((_mention(item, rng) for item in mentions), TEXT_TOKENS)


def training_texts() -> list[str]:
    """Texts that hold every word of the tasks and of the alt-text."""
    rng = Random("words")
    texts = [alt_text(picture(rng)[0], rng) for _ in range(2000)]
    for task in TASKS.values():
        texts += [" ".join(task.ask(task.draw(rng), rng)) for _ in range(2000)]
    return texts


def _overlap(patch: int, start: int, length: int) -> int:
    return max(0, min(patch + _PATCH_UNITS, start + length) - max(patch, start))


def _mention(item: Item, rng: Random) -> str:
    if item.shape == BAR:
        attributes = [f"{item.colour} bar", str(item.height)]
        attributes += rng.choice(([item.box], []))
    else:
        attributes = [item.shape, item.colour, item.size]
        attributes = rng.sample(attributes, rng.choice((2, 3, 3)))
        attributes += rng.choice(([item.place], [item.box], [item.box], []))
    rng.shuffle(attributes)
    return " ".join(attributes)
