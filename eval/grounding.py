"""Score a grounding task by IoU: `python eval/grounding.py -a ANSWERS [--output SCORE]`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from anywhere: the package's parent folder must be on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.cli import evaluator

main = evaluator("Share of boxes with IoU > 0.5, and mean IoU.", "iou")


if __name__ == "__main__":
    sys.exit(main())
