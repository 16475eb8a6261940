"""The small world of the tiny experiment: pictures of 48 × 48 pixels whose content is known exactly.

A picture is a scene (up to four filled shapes on a light ground) or a bar chart. Positions count in units of 4 pixels,
so that a box takes one of 13 values on each side. Everything is drawn from a `random.Random`: the same seed gives the
same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

PIXELS = 48
UNIT = 4
UNITS = PIXELS // UNIT
_FINE = 4  # drawn this much larger, then averaged down

COLOURS = {
    "red": (214, 48, 42),
    "green": (46, 158, 66),
    "blue": (44, 92, 214),
    "yellow": (238, 200, 40),
    "purple": (146, 62, 186),
    "orange": (242, 132, 32),
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 2, "large": 4}  # side in units
BAR = "bar"
MAX_VALUE = 9
_BASELINE = UNITS - 1  # bars stand one unit above the lower edge
_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "centre", "right")


@dataclass(frozen=True)
class Item:
    """One shape or bar; x, y, width, height in units, y downwards."""

    shape: str
    colour: str
    x: int
    y: int
    width: int
    height: int

    @property
    def size(self) -> str:
        """`small` or `large`, by the width."""
        return "small" if self.width == SIZES["small"] else "large"

    @property
    def place(self) -> str:
        """Where the middle lies on a 3 × 3 grid, such as `top left`."""
        row = (2 * self.y + self.height) * 3 // (2 * UNITS)
        column = (2 * self.x + self.width) * 3 // (2 * UNITS)
        return f"{_ROWS[row]} {_COLUMNS[column]}"

    @property
    def box(self) -> str:
        """`[x1, y1, x2, y2]` as fractions of the picture, two decimals."""
        corners = (self.x, self.y, self.x + self.width, self.y + self.height)
        return "[" + ", ".join(f"{corner / UNITS:.2f}" for corner in corners) + "]"

    @property
    def name(self) -> str:
        """Such as `small red circle`."""
        return f"{self.size} {self.colour} {self.shape}"


def draw_scene_items(rng: Random) -> list[Item]:
    """Two to four shapes that leave a unit of ground between them, no two alike; in reading order."""
    wanted = rng.randint(2, 4)
    items: list[Item] = []
    while len(items) < wanted:
        side = SIZES[rng.choice(list(SIZES))]
        x, y = rng.randint(0, UNITS - side), rng.randint(0, UNITS - side)
        item = Item(rng.choice(SHAPES), rng.choice(list(COLOURS)), x, y, side, side)
        if not any(_near(item, other) or item.name == other.name for other in items):
            items.append(item)
    return sorted(items, key=lambda item: (item.y * 3 // UNITS, item.x, item.y))


def draw_chart_items(rng: Random) -> list[Item]:
    """Two to four bars of different colours and heights (1 to 9 units), from left to right."""
    count = rng.randint(2, 4)
    colours = rng.sample(list(COLOURS), count)
    heights = rng.sample(range(1, MAX_VALUE + 1), count)
    left = rng.randint(0, UNITS - (3 * count - 1))
    return [
        Item(BAR, colour, left + 3 * slot, _BASELINE - height, 2, height)
        for slot, (colour, height) in enumerate(zip(colours, heights, strict=True))
    ]


def render(items: Sequence[Item], rng: Random) -> Image.Image:
    """The picture (RGB, 48 × 48) of the items; ground and colours vary a little."""
    step = UNIT * _FINE
    chart = items[0].shape == BAR
    shade = 255 if chart else rng.randint(222, 250)
    image = Image.new("RGB", (PIXELS * _FINE, PIXELS * _FINE), (shade, shade, shade))
    pen = ImageDraw.Draw(image)
    for item in items:
        red, green, blue = (min(255, max(0, part + rng.randint(-14, 14))) for part in COLOURS[item.colour])
        left, top = item.x * step, item.y * step
        right, bottom = left + item.width * step - 1, top + item.height * step - 1
        if item.shape == "circle":
            pen.ellipse((left, top, right, bottom), fill=(red, green, blue))
        elif item.shape == "triangle":
            pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=(red, green, blue))
        else:
            pen.rectangle((left, top, right, bottom), fill=(red, green, blue))
    if chart:
        pen.rectangle((0, _BASELINE * step, image.width, _BASELINE * step + _FINE), fill=(40, 40, 40))
    return image.reduce(_FINE)


def _near(a: Item, b: Item) -> bool:
    across = a.x <= b.x + b.width and b.x <= a.x + a.width
    return across and a.y <= b.y + b.height and b.y <= a.y + a.height
