"""Text files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from eval.disk import move_into_place


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    move_into_place(temporary, path)
