"""The model card and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.report.academic import PAPER, TASKS
from visatb.commands.report import main
from visatb.report.card import model_card
from visatb.report.load import load
from visatb.report.view import view


@pytest.fixture(scope="module")
def card(index: Path) -> str:
    return (index.parent / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_head(card: str) -> None:
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == "lmsys/vicuna-7b-v1.5"
    assert head["pipeline_tag"] == "image-text-to-text"


def test_says_what_it_was_made_of(card: str) -> None:
    for heading in ("Training data", "Task weights", "Results on the test sets", "How to make it again", "Limits"):
        assert f"\n## {heading}\n" in card
    for task, weight in zip(TASKS, PAPER["table5"]["weights"], strict=True):
        shown = re.search(rf"\| {task} \| (\d\.\d{{4}}) \| [\d.]+ to [\d.]+ \|", card)
        assert shown, task
        assert float(shown.group(1)) == pytest.approx(weight, abs=1.5e-4)
    assert "| ShareGPT | 1.0000 | – |" in card
    assert "| VisATB | 0.1437 | 0.5724 | 77.99 | 61.81 | 20.16 | 67.48 | 67.38 | 11.29 | 0.15 |" in card
    assert "3700 optimizer steps of 128 samples" in card
    assert "`ShareGPT4V_train.json`" in card
    assert "One training run of each method" in card
    assert "visatb run experiment.yaml" in card


def test_tables_are_rectangular(card: str, bare: Path) -> None:
    assert_rectangular(card)
    weights = json.loads((bare / "weights.json").read_text())
    weights["tasks"][-1] = "a | b"
    weights["weights"]["a | b"] = weights["weights"].pop("ShareGPT")
    (bare / "weights.json").write_text(json.dumps(weights))
    run = load(bare)
    other = model_card(run, view(run))
    assert "| a \\| b | 1.0000 | – |" in other
    assert_rectangular(other)


def assert_rectangular(card: str) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", card, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


@pytest.mark.usefixtures("no_figures")
def test_command(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bare), "--samples", "3", "--image_megabytes", "0.1"]) == 0
    assert capsys.readouterr().out.strip() == str(bare / "report" / "index.html")


def test_module_refuses_what_is_no_work_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "visatb.commands.report", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "experiment.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("words", [["x", "--samples", "-1"], ["x", "--samples", "many"], []])
def test_bad_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
