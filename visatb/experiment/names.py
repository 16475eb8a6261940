"""Names of models, of their files, and of the splits that questions come in.

A model is `mini`, `plus_mini:<unit>`, `single:<unit>`, `single_mini:<unit>`, `base`, a weighting method (`EW`, …) or
`STL:<task>`. A unit is a task, or a group of tasks. A model that is trained more than once has `#2`, `#3`, … behind its
name from the second time on (`eval.repeats.repeat_name`).
"""

from __future__ import annotations

import re
from typing import Literal

from eval.repeats import split_repeat

Split = Literal["val", "test"]
SPLITS: tuple[Split, ...] = ("val", "test")
"""The questions that λ comes from, and those that the methods are compared on."""


def safe(name: str) -> str:
    """`name` as part of a file name: ":" becomes "-", and so does what file systems or shells mind.

    A repeat's "#" becomes "@": no other name has that on disk, so that task `A-2` and a second `A` keep apart.
    """
    model, repeat = split_repeat(name)
    return re.sub(r"[^\w.+-]", "-", model) + (f"@{repeat}" if repeat > 1 else "")
