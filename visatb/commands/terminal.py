"""What commands share: consoles, durations and sizes in words."""

from __future__ import annotations

from rich.console import Console
from rich.filesize import decimal


def plain_console(stderr: bool = False) -> Console:
    """A console that shows names as they are (`plus_mini:chart:` holds no emoji)."""
    return Console(stderr=stderr, emoji=False, markup=False, highlight=False)


def duration(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "< 1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def size(count: float | None) -> str:
    """Bytes in words."""
    return "?" if count is None else decimal(round(count))
