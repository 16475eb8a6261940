"""λ as other trainers' mixing ratios: arithmetic, what a file holds, what cannot be mixed, the trainers' own parsers.

The parsers of trainers that are not installed here are run by benchmarks/exports.py, whose result is kept.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks import exports
from visatb.commands.export import main
from visatb.convert.mixture import FORMATS

WEIGHTS = {"a": 0.5, "b": 1.5}
KEPT = Path(__file__).parents[2] / "benchmarks/results/exports.json"


@pytest.fixture
def data(tmp_path):
    """Weights, and data of 6 records of a, 2 and 4 of b."""
    for name, count in {"a": 6, "b1": 2, "b2": 4}.items():
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
        rows = [{"id": f"{name}-{i}", "conversations": turns} for i in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "weights.json").write_text(json.dumps({"tasks": list(WEIGHTS), "weights": WEIGHTS}))
    return tmp_path


def write(folder: Path, to: str, *data: str) -> str:
    given = data or ("a=a.json", "b=b1.json", "b=b2.json")
    words = [f"{task}={folder / name}" for task, name in (pair.split("=") for pair in given)]
    assert main([str(folder / "weights.json"), "--to", to, "--output", str(folder / "out"), "--data", *words]) == 0
    return (folder / "out").read_text()


def test_probabilities_are_weights_times_records(data):
    """By hand: 0.5·6, 1.5·2 and 1.5·4 of 12."""
    text = write(data, "llama-factory")
    content = yaml.safe_load(text)
    assert content["dataset"] == "a,b-1,b-2"
    assert [float(value) for value in content["interleave_probs"].split(",")] == [0.25, 0.25, 0.5]
    assert content["mix_strategy"] == "interleave_over"
    assert yaml.safe_load(write(data, "ms-swift"))["interleave_prob"] == [0.25, 0.25, 0.5]


def test_ratios_keep_the_length_of_the_epoch(data):
    """By hand: each record of a comes 0.5·12 / 12 times, of b 1.5·12 / 12 times."""
    (data / "out.py").write_text(write(data, "xtuner"))
    assert runpy.run_path(str(data / "out.py"))["SAMPLE_RATIOS"] == [0.5, 1.5, 1.5]
    entries = yaml.safe_load(write(data, "axolotl"))["datasets"]
    assert Counter(Path(entry["path"]).stem for entry in entries) == {"a": 1, "b1": 2, "b2": 2}
    assert [(entry["shards"], entry["shards_idx"]) for entry in entries if "shards" in entry] == [(2, 0)] * 3


@pytest.mark.parametrize("to", FORMATS)
def test_every_file_says_what_is_exact_and_what_is_not(to, data):
    said = write(data, to).partition("\n\n")[0]
    assert "a 0.5, b 1.5" in said
    assert "# Exact: " in said
    assert "# Not exact: the loss." in said


def test_the_data_are_those_of_the_experiment_beside_the_weights(data, capsys):
    task = {"val": "a.json", "test": "a.json", "metric": "em"}
    tasks = {"a": {"train": "a.json", **task}, "b": {"train": ["b1.json", "b2.json"], **task}}
    (data / "experiment.yaml").write_text(yaml.safe_dump({"model": {"path": "some/7b"}, "tasks": tasks}))
    assert main([str(data / "weights.json"), "--to", "ms-swift"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["dataset"] == [str(data / f"{n}.json") for n in ("a", "b1", "b2")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a={}/a.json"], r"no data for ['b']"),
        (["a={}/a.json", "b={}/b1.json", "c={}/b2.json"], r"no weight for ['c']"),
        (["a={}/a.json", "b={}/gone.json"], "gone.json"),
    ],
)
def test_what_does_not_fit_is_said(given, message, data, capsys):
    words = [pair.format(data) for pair in given]
    assert main([str(data / "weights.json"), "--to", "trl", "--output", str(data / "out"), "--data", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (data / "out").exists()


def test_without_data_the_error_says_what_to_name(data, capsys):
    assert main([str(data / "weights.json"), "--to", "trl"]) == 2
    assert "--data TASK=FILE" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", FORMATS)
def test_the_trainers_own_reading_gives_the_shares(trainer, tmp_path):
    """By the real parser where the trainer is installed, else by what it gave in an environment of its own."""
    figures = KEPT
    if exports.installed(trainer):
        figures = tmp_path / "exports.json"
        command = [sys.executable, "-m", "benchmarks.exports", trainer, "--output", str(figures)]
        done = subprocess.run(command, cwd=KEPT.parents[2], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(figures.read_text())["figures"].get(trainer)
    if found is None:
        pytest.skip(f"{trainer} is not installed, and was not where the kept figures were taken")
    assert found["off"] < 0.02
