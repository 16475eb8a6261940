"""`visatb init`: a folder of data becomes an experiment file that loads."""

import json
from pathlib import Path

import pytest

from tests.workflow.world import write_task
from visatb.commands.init import main
from visatb.experiment.draft import guess_metric
from visatb.experiment.read import load_experiment
from visatb.experiment.sizes import choose_sizes
from visatb.workflow.estimate import make_plan


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


def draft_of(folder: Path, counts: dict[str, int], model: Path | str = "somewhere/7b") -> Path:
    for task, count in counts.items():
        write_task(folder / "data", task, {"train": count, "val": 2, "test": 2})
    output = folder / "mine.yaml"
    assert main([str(folder / "data"), "--output", str(output), "--model", str(model)]) == 0
    return output


def test_sizes_fit_small_data(tmp_path):
    output = draft_of(tmp_path, {"a": 800, "b": 1664, "c": 1000, "d": 900})
    experiment = load_experiment(output)
    assert (experiment.subsets.large, experiment.subsets.mini, experiment.global_batch_size) == (1, 1 / 4, 8)
    models = {model.name: model for model in make_plan(experiment).models}
    assert (models["mini"].samples, models["mini"].steps) == (1091, 137)  # by hand: 4364 / 4, in steps of 8
    text = output.read_text()
    assert "mini: 1/4 # 200 to 416 samples a task" in text
    assert "global_batch_size: 8 # samples a step: 137 steps of the mini model" in text


@pytest.mark.parametrize(
    ("totals", "large", "mini", "batch"),
    [
        # The paper's academic benchmark: its own settings.
        ([83_000, 72_000, 80_000, 18_000, 48_000, 50_000, 41_000, 82_000], "1.0", "1/32", 128),
        ([400_000] * 4, "1/4", "1/32", 128),
        ([40_000] * 4, "1/4", "1/32", 32),  # minis of 1,250: 157 steps of 32, and 79 of 64
        ([16_000] * 4, "1.0", "1/16", 32),
        ([100_000, 100_000, 300], "1.0", "1/32", 32),  # one small task does not make all minis large
        ([10, 12], "1.0", "1/4", 8),
    ],
)
def test_sizes_are_the_papers_where_the_data_allow(totals, large, mini, batch):
    counts = {f"task{number}": total for number, total in enumerate(totals)}
    sizes = choose_sizes(counts, list(counts))
    assert (sizes.large, sizes.mini, sizes.batch) == (large, mini, batch)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({"max_position_embeddings": 32768}, 2048),
        ({"model_type": "llava"}, 2048),
        ([], 2048),
        (None, 2048),
    ],
)
def test_length_is_within_the_models_positions(tmp_path, config, length):
    if config is not None:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    output = draft_of(tmp_path, {"a": 4, "b": 4}, tmp_path / "base")
    assert load_experiment(output).training["model_max_length"] == length
