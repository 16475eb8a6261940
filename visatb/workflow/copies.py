"""Which image files are copies of others, by content and whatever their names.

Files of unlike sizes differ; of like sizes a block from the middle is compared, and only where that is equal, all of
the file. So an image of a million costs a look at its size, and one block where a question's image has the same size.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from visatb.workdir.hashes import Files

_BLOCK = 4096
_PATHS_AT_ONCE = 1000
_THREADS = 16  # on a network file system each look waits for an answer


def copies(wanted: Iterable[str], others: Iterable[str], folder: str | os.PathLike[str] | None) -> dict[str, str]:
    """The paths, of both kinds, of files with the content of a wanted one → the first such wanted path.

    That first path itself is left out, and so are files that have no copy or cannot be read. Paths are relative to
    `folder`.
    """
    wanted = set(wanted)
    alike = [sorted(wanted | set(others))]
    with ThreadPoolExecutor(_THREADS) as pool:
        for tell in (_size, _middle, Files().hash):
            alike = [
                part
                for group in alike
                for part in _split(group, pool, partial(_marks, tell, os.fspath(folder or ".")))
                if len(part) > 1 and not wanted.isdisjoint(part)
            ]
    found: dict[str, str] = {}
    for group in alike:
        first = next(path for path in group if path in wanted)
        found |= {path: first for path in group if path != first}
    return found


def _split(paths: list[str], pool: ThreadPoolExecutor, marks: Callable[[list[str]], list[object]]) -> list[list[str]]:
    """The parts of `paths` with one mark each."""
    parts: dict[object, list[str]] = defaultdict(list)
    chunks = [paths[start : start + _PATHS_AT_ONCE] for start in range(0, len(paths), _PATHS_AT_ONCE)]
    for chunk, found in zip(chunks, pool.map(marks, chunks), strict=True):
        for path, mark in zip(chunk, found, strict=True):
            parts[mark].append(path)
    parts.pop(None, None)
    return list(parts.values())


def _marks(tell: Callable[[str], object], folder: str, paths: list[str]) -> list[object]:
    """What `tell` says of each file; None for one that cannot be read, about which others complain."""
    marks: list[object] = []
    for path in paths:
        try:
            marks.append(tell(os.path.join(folder, path)))
        except (OSError, ValueError):
            marks.append(None)
    return marks


def _size(file: str) -> int:
    return os.stat(file).st_size


def _middle(file: str) -> bytes:
    with open(file, "rb", buffering=0) as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _BLOCK) // 2)
        return stream.read(_BLOCK)
