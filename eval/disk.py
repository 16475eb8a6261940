"""Files that are there whole or not at all, also after the machine loses power."""

from __future__ import annotations

import os
from pathlib import Path


def move_into_place(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Rename a written file over `path` (same file system): its content is on the disk first, then its new name.

    Without the first, a power cut can leave the final name with an empty file; without the second, the old file.
    """
    _sync(temporary)
    os.replace(temporary, path)
    _sync(Path(path).parent)


def _sync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
