"""`visatb prepare NAME`: data sets as task files in LLaVA's format. One file per source, one line here."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "tiny": "visatb.prepare.tiny:Tiny",
    "nlvr": "visatb.prepare.nlvr:Nlvr",
    "academic": "visatb.prepare.academic:Academic",
    "m3it": "visatb.prepare.m3it:M3IT",
    "chat": "visatb.prepare.chat:Chat",
}
"""Name → module:class; the class is a `visatb.prepare.source.Source`, imported when it is asked for."""
