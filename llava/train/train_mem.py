"""LLaVA's other entry point, kept for scripts that name it; attention is chosen with `--attn_implementation`."""

from __future__ import annotations

import sys

from llava.train.train import main

if __name__ == "__main__":
    sys.exit(main())
