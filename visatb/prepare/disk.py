"""Grouping more records than fit in memory, in a temporary database on disk.

SQLite sorts in files of its own under TMPDIR.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

_BATCH = 4096
_CACHE_KIB = 32 * 1024


class DiskGroups(AbstractContextManager["DiskGroups"]):
    """JSON values under text keys. Memory stays at some tens of MiB whatever their number; SQLite sorts on disk."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes the database while it lives."""
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix=".groups.")
        # Nothing here outlives the process, so nothing needs to be safe against a crash.
        self._database = sqlite3.connect(Path(self._folder.name) / "groups.sqlite", isolation_level=None)
        settings = {"journal_mode": "OFF", "synchronous": "OFF", "temp_store": "FILE", "cache_size": -_CACHE_KIB}
        for name, value in settings.items():
            self._database.execute(f"PRAGMA {name} = {value}")
        self._database.execute("CREATE TABLE entry (key TEXT NOT NULL, value TEXT NOT NULL)")
        self._database.execute("BEGIN")

    def extend(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Add keys and values."""
        rows = ((key, json.dumps(value, ensure_ascii=False)) for key, value in entries)
        self._database.executemany("INSERT INTO entry VALUES (?, ?)", rows)

    def __len__(self) -> int:
        """The number of keys."""
        return int(self._database.execute("SELECT COUNT(DISTINCT key) FROM entry").fetchone()[0])

    def __iter__(self) -> Iterator[tuple[str, list[Any]]]:
        """Each key with its values as they were added, keys in order."""
        cursor = self._database.execute("SELECT key, value FROM entry ORDER BY key, rowid")
        cursor.arraysize = _BATCH
        current: str | None = None
        values: list[Any] = []
        for key, value in cursor:
            if key != current:
                if current is not None:
                    yield current, values
                current, values = key, []
            values.append(json.loads(value))
        if current is not None:
            yield current, values

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._folder.cleanup()
