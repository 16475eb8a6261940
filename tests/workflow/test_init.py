"""`visatb init`: a folder of data becomes an experiment file that loads."""

import json
from pathlib import Path

import pytest

from tests.workflow.world import write_task
from visatb.experiment import load_experiment
from visatb.init import guess_metric, main


def write_truths(path: Path, truths: list) -> Path:
    turns = [[{"from": "human", "value": "?"}, {"from": "gpt", "value": truth}] for truth in truths]
    path.write_text(json.dumps([{"id": number, "conversations": pair} for number, pair in enumerate(turns)]))
    return path


def test_draft_loads_and_names_everything(tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    write_task(data, "colour", {"train": 3, "val": 2, "test": 2})
    write_task(data, "shape: odd", {"train": 3, "val": 2, "test": 2})
    write_task(data, "chat", {"train": 3})
    write_truths(data / "colour-mini_train-1.json", ["x"])  # a subset of somebody's is no task
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "configs" / "mine.yaml"
    output.parent.mkdir()
    (data / "shape: odd_train-3.json").rename(data / "shape-odd_train-3.json")
    for split in ("val", "test"):
        (data / f"shape: odd_{split}-2.json").rename(data / f"shape-odd_{split}-2.json")
    assert main([str(data), "--output", str(output), "--model", "somewhere/7b"]) == 0
    experiment = load_experiment(output)
    assert list(experiment.tasks) == ["chat", "colour", "shape-odd"]
    assert experiment.fixed == {"chat": 1.0}
    assert experiment.tasks["colour"].train == [str(data / "colour_train-3.json")]
    assert experiment.tasks["colour"].metric == ["em"]
    assert experiment.image_folder == str(data / "images")
    assert main([str(data), "--output", str(output)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(("prefix", "holding"), [("", "data/images"), ("images/", "data"), ("data/images/", "")])
def test_image_folder_is_where_the_records_images_are(tmp_path, prefix, holding):
    data = tmp_path / "data"
    for task in ("colour", "shape"):
        path = data / write_task(data, task, {"train": 5, "val": 2, "test": 2})["train"]
        records = [record | {"image": prefix + record["image"]} for record in json.loads(path.read_text())]
        path.write_text(json.dumps([{"id": "text", "conversations": []}, *records]))
    assert main([str(data), "--output", str(tmp_path / "mine.yaml"), "--model", "somewhere/7b"]) == 0
    assert Path(str(load_experiment(tmp_path / "mine.yaml").image_folder)) == tmp_path / holding


@pytest.mark.parametrize(
    ("truths", "metric"),
    [
        (["[0.1, 0.2, 0.5, 0.6]"] * 3, "iou"),
        (["a dog runs over the wet grass", "two men sit on a bench in the park"], "cider"),
        (["yes", "two dogs"], "em"),
        ([["a long caption of many words here", "another"]], "cider"),
    ],
)
def test_metric_is_guessed_from_truths(tmp_path, truths, metric):
    assert guess_metric(write_truths(tmp_path / "x_val-3.json", truths))[0] == metric


def test_folder_without_data(tmp_path, capsys):
    assert main([str(tmp_path), "--output", str(tmp_path / "x.yaml")]) == 2
    assert "holds no file named" in capsys.readouterr().err
    write_truths(tmp_path / "a_val-1.json", ["x"])
    assert main([str(tmp_path), "--output", str(tmp_path / "x.yaml")]) == 2
    assert "no training data" in capsys.readouterr().err
