"""Alt-text of about one length, so that no batch is mostly padding."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TOKEN = re.compile(r"[^\s\[\],]+|[\[\],]")


def join_mentions(mentions: Iterable[str], tokens: int) -> str:
    """The first mentions joined by `and`, as many as fit in `tokens` words and punctuation marks (at least one)."""
    text = ""
    for mention in mentions:
        longer = f"{text} and {mention}" if text else mention
        if text and len(_TOKEN.findall(longer)) > tokens:
            break
        text = longer
    return text
