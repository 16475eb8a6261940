"""Content hashes of files, remembered by size and time of change."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.files import read_json, sha256, write_json
from llava.data.errors import DataError
from llava.data.images import stamp
from llava.data.records import image_paths, read_records

_STATS_AT_ONCE = 16  # for folders on a network


_PER_PART = 4096


_WHOLE = 1 << 26  # files up to this size are hashed whole


class Files:
    """Content hashes of the user's files, remembered by size and time of change."""

    def __init__(self, store: Path | None = None) -> None:
        self.store = store
        try:
            self.known: dict[str, list[Any]] = dict(read_json(store)) if store else {}
        except (EvaluationError, TypeError, ValueError):
            self.known = {}
        self.changed = False

    def hash(self, path: str | Path) -> str:
        """SHA-256 of a data file; "missing" where there is none."""
        try:
            state = Path(path).stat()
        except OSError:
            return "missing"
        stamp = [state.st_size, state.st_mtime_ns]
        held = self.known.get(str(path))
        if held is None or held[:2] != stamp:
            held = self.known[str(path)] = [*stamp, sha256(path)]
            self.changed = True
        return str(held[2])

    def images(self, path: str | Path, folder: str | None) -> str | None:
        """What stands for the images of a data file's records: a hash of each one's path, size and time of change.

        Their content is not read, and which they are is remembered by the data file's content, so that a million cost
        seconds. None where there is no image folder.
        """
        if folder is None:
            return None
        digest = hashlib.sha256()
        named = self._image_paths(Path(path))
        with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
            parts = (named[start : start + _PER_PART] for start in range(0, len(named), _PER_PART))
            for stamps in pool.map(lambda part: [stamp(folder, name) for name in part], parts):
                digest.update(json.dumps(stamps).encode())
        digest.update(json.dumps(named).encode())
        return digest.hexdigest()[:20]

    def _image_paths(self, path: Path) -> list[str]:
        """The images that a data file names, once each and in order."""
        content = self.hash(path)
        held = self.store.with_name("images") / f"{content}.json" if self.store else None
        if held is not None:
            with suppress(EvaluationError, TypeError):
                found = read_json(held)
                if all(isinstance(name, str) for name in found):
                    return list(found)
        named: dict[str, None] = {}
        with suppress(DataError):  # what is wrong with a data file is said where it is checked
            for raw in read_records(path):
                named |= dict.fromkeys(image_paths(raw.content))
        if held is not None and content != "missing":
            write_json(held, list(named))
        return list(named)

    def model(self, name: str | None) -> Any:
        """What stands for a model's content: its files' hashes, of large ones size and time; a hub name itself."""
        path = Path(name or "")
        if name is None or not path.exists():
            return name
        files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.is_file())
        return [[file.name, self._brief(file)] for file in files]

    def _brief(self, file: Path) -> Any:
        state = file.stat()
        return self.hash(file) if state.st_size <= _WHOLE else [state.st_size, state.st_mtime_ns]

    def save(self) -> None:
        """Keep what was hashed for the next time."""
        if self.store and self.changed:
            write_json(self.store, self.known)
            self.changed = False
