"""The whole experiment as one command, and from Python: load_experiment, make_plan, run_experiment, read_status.

Each is imported only when it is asked for, so that `import visatb` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visatb.experiment.read import load_experiment
    from visatb.workflow.engine import run_experiment
    from visatb.workflow.estimate import make_plan
    from visatb.workflow.status import read_status

__all__ = ["load_experiment", "make_plan", "read_status", "run_experiment"]

_HOMES = {
    "load_experiment": "visatb.experiment.read",
    "make_plan": "visatb.workflow.estimate",
    "read_status": "visatb.workflow.status",
    "run_experiment": "visatb.workflow.engine",
}


def __getattr__(name: str) -> Any:
    """An exported name, imported from where it is defined."""
    if name not in _HOMES:
        raise AttributeError(f"module 'visatb' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
