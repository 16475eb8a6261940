"""Names of models that are trained more than once: `mini`, `mini#2`, `mini#3`, …."""

from __future__ import annotations

import re

MOST_REPEATS = 9999
_REPEAT = re.compile(r"#([2-9]|[1-9][0-9]{1,3})$")


def repeat_name(model: str, repeat: int) -> str:
    """A model's name when it is trained for the 1st, 2nd, 3rd, … time: `mini`, `mini#2`, `mini#3`, …."""
    return model if repeat == 1 else f"{model}#{repeat}"


def split_repeat(name: str) -> tuple[str, int]:
    """The model and the number of its repeat: `plus_mini:A#3` is ("plus_mini:A", 3), `mini` is ("mini", 1)."""
    match = _REPEAT.search(name)
    return (name[: match.start()], int(match[1])) if match else (name, 1)
