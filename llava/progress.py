"""How far a command is, for whoever watches it: a small file, in the place that $VISATB_PROGRESS names.

It holds `{"done": 12, "total": 100, "left": 25.0}`; `left` are seconds, null where nothing can be told yet.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from eval.files import read_object, whole_file

VARIABLE = "VISATB_PROGRESS"
EVERY = 1.0  # seconds between two notes


class Progress:
    """Notes how much of `total` is done, at most once a second; nothing where nobody has asked for it.

    Of several processes only the first one notes. A note that cannot be written is left out: no training ends for it.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        file = os.environ.get(VARIABLE)
        self._path = Path(file) if file and os.environ.get("RANK", "0") == "0" else None
        self._total, self._first, self._done = total, done, done
        self._began = time.monotonic()
        self._note()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if time.monotonic() - self._noted >= EVERY or self._done >= self._total:
            self._note()

    def _note(self) -> None:
        self._noted = time.monotonic()
        if self._path is None:
            return
        here = self._done - self._first  # what an earlier start has done tells nothing of the pace
        left = (self._total - self._done) * (self._noted - self._began) / here if here else None
        text = json.dumps({"done": self._done, "total": self._total, "left": left})
        # Syncing to the disk can take longer than a step.
        with suppress(OSError), whole_file(self._path, synced=False) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_progress(path: Path) -> tuple[float | None, float | None]:
    """The share that is done (0 to 1) and the seconds left as a command has noted them, None where it has not."""
    try:
        note = read_object(path)
        left = note["left"]
        return note["done"] / max(1, note["total"]), None if left is None else float(left)
    except (LookupError, TypeError, ValueError):
        return None, None
