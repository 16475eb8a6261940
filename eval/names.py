"""Names of data files: `{benchmark/task}(-mini|-plus-mini)_{train|val|test}-{size}.json`, the size 41000 or 41k."""

from __future__ import annotations

import re

NAMED = r"(?P<task>.+?)(?P<kind>-plus-mini|-mini)?_(?P<split>train|val|test)"
"""A name (of a regular expression) before its size."""
SIZED = re.compile(rf"{NAMED}-(?P<size>\d+(?:\.\d+)?)(?P<unit>[kKmM]?)")
"""A name that tells a number of records: `size` times UNITS of `unit` in lower case."""
UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
