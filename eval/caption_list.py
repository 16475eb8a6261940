"""Score captions with several references by CIDEr: `python eval/caption_list.py -a ANSWERS [--tokenizer ptb]`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from anywhere: the package's parent folder must be on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.cli import CAPTION_TOKENIZERS, evaluator

main = evaluator("CIDEr, one or several references each.", "cider", tokenizers=CAPTION_TOKENIZERS)


if __name__ == "__main__":
    sys.exit(main())
