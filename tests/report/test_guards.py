"""Guards in the report: their table, their columns of the matrix, and the what-if panel's guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visatb.report import build

pytestmark = pytest.mark.usefixtures("no_figures")


def test_a_report_shows_what_harms_a_guard(bare: Path):
    weights = json.loads((bare / "weights.json").read_text())
    units = list(weights["difficulties"])
    models = {name: {"value": 0.5, "fall": 0.4, "stderr": 0.01} for name in ("mini", f"plus_mini:{units[0]}")}
    models["mini"] = {"value": 0.898, "fall": 0.002, "stderr": 0.01}
    guard = {"limit": 0.05, "metric": "gleu", "num_samples": 200, "base": {"value": 0.9, "stderr": 0.01}}
    effects = {unit: {"fall": 0.4 if unit == units[0] else -0.1, "stderr": 0.02} for unit in units}
    weights["guards"] = {"calm": {**guard, "models": models, "units": effects}}
    weights["warnings"] = [*weights.get("warnings", []), "guard calm: proxies fall"]
    (bare / "weights.json").write_text(json.dumps(weights))
    page = build(bare).read_text(encoding="utf-8")
    assert "<h2>Guards</h2>" in page
    assert "−0.4000 ± 0.0100</td><td>lost more</td>" in page
    assert "−0.0020 ± 0.0100</td><td>kept</td>" in page
    assert f"most harmful first: {units[0]} −0.4000 ± 0.0200; {units[1]} +0.1000" in page
    assert "calm (guard)" in page
    assert "λ: guard calm: proxies fall." in page
    [data] = [part.partition("<")[0] for part in page.split('id="whatif-data">')[1:]]
    assert json.loads(data)["guards"] == [{"name": "calm", "limit": 0.05, "falls": [0.4, *[-0.1] * (len(units) - 1)]}]


def test_a_report_without_guards_has_no_place_for_them(page: str):
    assert "<h2>Guards</h2>" not in page
    assert "(guard)" not in page
