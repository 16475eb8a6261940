"""Score a grounding task by IoU: `python eval/grounding.py -a ANSWERS [--output SCORE]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, from anywhere: the package's parent folder must be on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.cli import run


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run("Share of boxes with IoU > 0.5, and mean IoU.", "iou", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
