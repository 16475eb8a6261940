"""Names of models, of their files, and of the splits that questions come in.

A model is `mini`, `plus_mini:<unit>`, `single:<unit>`, `single_mini:<unit>`, `base`, a weighting method (`EW`, …) or
`STL:<task>`. A unit is a task, or a group of tasks. A model that is trained more than once has `#2`, `#3`, … behind its
name from the second time on (`eval.repeats.repeat_name`).
"""

from __future__ import annotations

from typing import Literal

Split = Literal["val", "test", "guard"]
SPLITS: tuple[Split, ...] = ("val", "test", "guard")
"""The questions that λ comes from, those that the methods are compared on, and those of guards."""
