"""Names of models, of their files, and of the splits that questions come in.

A model is `mini`, `plus_mini:<unit>`, `single:<unit>`, `single_mini:<unit>`, `base`, a weighting method (`EW`, …) or
`STL:<task>`. A unit is a task, or a group of tasks.
"""

from __future__ import annotations

import re
from typing import Literal

Split = Literal["val", "test"]
SPLITS: tuple[Split, ...] = ("val", "test")
"""The questions that λ comes from, and those that the methods are compared on."""


def safe(name: str) -> str:
    """`name` as part of a file name: ":" becomes "-", and so does what file systems or shells mind."""
    return re.sub(r"[^\w.+-]", "-", name)
