"""How the settings of two runs differ, in words for an error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

_MOST, _LONGEST = 5, 60


def differences(held: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str]) -> str:
    """`NAME (OLD there, NEW here); …` for those names whose values differ, at most five of them."""
    other = [name for name in names if held.get(name) != wanted.get(name)]
    shown = [f"{name} ({_short(held.get(name))} there, {_short(wanted.get(name))} here)" for name in other[:_MOST]]
    return "; ".join(shown) + (f" and {len(other) - _MOST} more" if len(other) > _MOST else "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "…"
