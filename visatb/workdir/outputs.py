"""How a step's files stood when it was done, and whether they still stand so.

A note is `{path relative to the work folder: [bytes, time of change in ns, SHA-256]}`. A small file is as noted when
its content is. A large one is when its size and time are, or, where only the time is another (a copied folder), its
content.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eval.files import sha256
from visatb.workdir.hashes import Files

Note = dict[str, list[Any]]


_HASHED_AT_ONCE = 8  # a large model's shards
_SMALL = 1 << 20  # bytes: scores, answers and settings, which are read in a few milliseconds


def note(root: Path, files: Iterable[Path]) -> Note:
    """How files stand now."""
    paths = list(files)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        return dict(zip((str(path.relative_to(root)) for path in paths), pool.map(_state, paths), strict=True))


def _state(path: Path) -> list[Any]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, Files().hash(path)]


def damage(root: Path, noted: Note, files: Files | None = None, thorough: bool = False) -> str | None:
    """The first file that is not as noted, and what it is like; None where all are.

    `files` remembers the hashes of large files; `thorough` reads these too, also where size and time are as noted.
    """
    files = files or Files()
    for name, (size, changed, content) in noted.items():
        path = root / name
        try:
            state = path.stat()
        except OSError:
            return f"{path} is gone"
        if state.st_size != size:
            return f"{path} has {state.st_size} bytes where {size} were written"
        anew = thorough or size <= _SMALL
        if (anew or state.st_mtime_ns != changed) and (sha256(path) if anew else files.hash(path)) != content:
            return f"{path} is not as it was written"
    return None


def without(noted: Note, root: Path, files: Iterable[Path]) -> Note:
    """A note that says nothing of `files`, which are about to be removed."""
    names = {os.path.relpath(file, root) for file in files}
    return {name: state for name, state in noted.items() if name not in names}
