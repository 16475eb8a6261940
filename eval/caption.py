"""Score single-reference captions by CIDEr: `python eval/caption.py -a ANSWERS [--tokenizer ptb]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file, from anywhere: the package's parent folder must be on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.cli import CAPTION_TOKENIZERS, run, single_reference


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run("CIDEr, one reference each.", "cider", tokenizers=CAPTION_TOKENIZERS, check=single_reference, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
