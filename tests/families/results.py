"""What holds for which family: `python -m tests.families.results` runs every check and writes it down.

Writes docs/models.json, and the table of docs/models.md from it. Takes some minutes of one core. `tests/families` runs
the same checks, and holds their outcome against the file.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers

from tests.families.checks import CHECKS, World, outcome
from tests.families.table import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "models.json"
PAGE = DOCS / "models.md"
BEGIN, END = "<!-- table: written by tests/families/results.py -->", "<!-- end of table -->"
HEADS = {
    "tokens": "tokens, labels, pixels",
    "loss": "loss, gradients",
    "accumulation": "accumulation",
    "resume": "resume",
    "lora": "LoRA",
    "answers": "answers",
    "packing": "packing",
}


def read_results() -> dict[str, Any]:
    """The file as it was written last."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def table(results: dict[str, Any]) -> str:
    """The table of docs/models.md."""
    rows = ["| models | `model_type` | " + " | ".join(HEADS.values()) + " |", "|---" * (len(HEADS) + 2) + "|"]
    reasons: dict[str, str] = {}
    for name, found in results["families"].items():
        cells = [_cell(found[check], reasons) for check in HEADS]
        rows.append(f"| {FAMILIES[name].title} | `{name}` | {' | '.join(cells)} |")
    notes = [f"{mark} {reason[0].upper()}{reason[1:]}." for reason, mark in reasons.items()]
    return "\n".join([*rows, "", f"Measured with transformers {results['transformers']}.", *_spaced(notes)])


def _cell(found: str, reasons: dict[str, str]) -> str:
    if found == "exact":
        return "yes"
    return f"no {reasons.setdefault(found, f'({len(reasons) + 1})')}"


def _spaced(notes: list[str]) -> list[str]:
    return [line for note in notes for line in ("", note)]


def _write(families: dict[str, Any]) -> None:
    results = {"transformers": transformers.__version__, "families": families}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Run all checks of the families that are named, or of all; one that fails ends it."""
    logging.disable(logging.WARNING)
    names = sys.argv[1:] or list(FAMILIES)
    held: dict[str, Any] = read_results()["families"] if RESULTS.is_file() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            world = World(name, Path(folder))
            held[name] = {check: outcome(check, world) for check in CHECKS}
        sys.stdout.write(f"{name}: {held[name]}\n")
        _write({name: held[name] for name in FAMILIES if name in held})
    return 0


if __name__ == "__main__":
    sys.exit(main())
