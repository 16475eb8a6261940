"""Two work folders side by side."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.report.academic import TASKS, begun
from visatb.commands.report import main
from visatb.report import compare
from visatb.report.compare import changed_settings, notes, results, weights
from visatb.report.load import load

NAMES = ("a", "b")


@pytest.fixture
def other(academic: Path, tmp_path: Path) -> Path:
    """A second folder: another temperature and λ, one figure changed, another set of questions on one task."""
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("weights.json", "results.json", "experiment.yaml"):
        shutil.copy(academic / name, folder / name)
    shutil.copytree(academic / "scores", folder / "scores")
    settings = yaml.safe_load((folder / "experiment.yaml").read_text())
    settings["weighting"]["temperature"] = 1.0
    settings["tasks"]["<b>new</b>"] = {"train": ["/data/new.json"], "weight": 1.0}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    content = json.loads((folder / "weights.json").read_text())
    content["weights"]["GQA"] += 0.25
    (folder / "weights.json").write_text(json.dumps(content))
    content = json.loads((folder / "results.json").read_text())
    content["methods"]["EW"]["GQA"][0] -= 0.125
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_settings_that_differ(academic: Path, other: Path) -> None:
    pairs = changed_settings(load(academic).experiment, load(other).experiment)
    assert sorted(pairs) == [
        ("tasks.<b>new</b>.train", "–", "['/data/new.json']"),
        ("tasks.<b>new</b>.weight", "–", "1.0"),
        ("weighting.temperature", "0.5", "1.0"),
    ]
    assert changed_settings(load(other).experiment, load(other).experiment) == []


def test_weights_and_results_with_their_differences(academic: Path, other: Path) -> None:
    a, b = load(academic), load(other)
    table = weights(a, b, NAMES)
    assert table
    changes = {row[0]: row[5] for row in table["rows"]}
    assert changes == dict.fromkeys([*TASKS, "ShareGPT"], "+0.0000") | {"GQA": "+0.2500"}
    assert all(len(row) == len(table["head"]) for row in table["rows"])
    found = results(a, b, NAMES)
    assert found
    moved = {tuple(row[:2]) for row in found["rows"] if not row[5].startswith("+0.0000")}
    assert moved == {("EW", "GQA")}
    row = next(row for row in found["rows"] if row[:2] == ["EW", "GQA"])
    cell = a.test_cells("GQA", "EW")[0]
    assert cell.stderr
    assert row[5] == f"−0.1250 ± {2**0.5 * cell.stderr:.4f}"


def test_other_questions_are_named(academic: Path, other: Path) -> None:
    assert len(notes(load(academic), load(academic))) == 1
    for path in (other / "scores").rglob("GQA_*per_sample.json"):
        content = json.loads(path.read_text())
        content["samples"][0]["id"] = "another"
        path.write_text(json.dumps(content))
    found = " ".join(notes(load(academic), load(other)))
    assert "Other questions were asked of GQA (test), GQA (val): those figures do not compare." in found


def test_page_and_command(academic: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(academic, first := tmp_path / "first", ignore=shutil.ignore_patterns("report", "images"))
    assert main([str(first), str(other)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == first / "report" / "compare-other.html"
    text = path.read_text(encoding="utf-8")
    assert "<b>new" not in text
    assert "Every figure is of one training run" in text
    assert "<script" not in text
    assert len(re.findall("<table", text)) == len(re.findall("<caption", text)) == 3
    assert main([str(first), str(tmp_path / "nothing")]) == 2
    assert "no such work folder" in capsys.readouterr().err


def test_folders_that_are_only_begun(tmp_path: Path) -> None:
    for name in NAMES:
        begun(tmp_path / name)
    text = compare(tmp_path / "a", tmp_path / "b").read_text(encoding="utf-8")
    assert "Not both have task weights yet." in text
    assert "<p>None.</p>" in text
