"""`visatb validate`: what is found before anything is trained."""

import json
from pathlib import Path

import pytest

from tests.tiny import tiny_llava
from tests.workflow.world import write_experiment
from visatb.validate import main


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("base") / "model")


def spoil(file: Path, change) -> None:
    records = json.loads(file.read_text())
    change(records)
    file.write_text(json.dumps(records))


def run(folder: Path, base: Path, capsys, tasks=None, **settings) -> tuple[int, str]:
    settings = {"training": {"model_max_length": 128}, **settings}
    path = folder / "experiment.yaml"
    if not path.exists():
        path = write_experiment(folder, tasks or {"a": {}, "b": {}}, model={"path": str(base)}, **settings)
    code = main([str(path), "--workdir", str(folder / "work")])
    captured = capsys.readouterr()
    return code, captured.err if code else captured.out


def test_sound_experiment(tmp_path, base, capsys):
    code, text = run(tmp_path, base, capsys)
    assert (code, "fit to run" in text) == (0, True)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("a_train-16.json", lambda records: records[3].update(image="lost.png"), ["a-train-3", "lost.png"]),
        ("b_train-16.json", lambda records: records[5].update(task="other"), ["b-train-5", "other"]),
        ("a_val-12.json", lambda records: records[2]["conversations"].pop(), ["a-val-2", "pair"]),
        ("b_test-10.json", lambda records: records[1]["conversations"][1].update(value=""), ["b-test-1", "truth"]),
        ("b_test-10.json", lambda records: records[1].update(image="gone.png"), ["b-test-1", "gone.png"]),
    ],
)
def test_bad_records_are_named(tmp_path, base, capsys, file, change, words):
    write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": str(base)}, training={"model_max_length": 128})
    spoil(tmp_path / file, change)
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    for word in words:
        assert word in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training": {"learnin_rate": 1}}, ["learnin_rate", "did you mean --learning_rate"]),
        ({"training": {"bits": 5}}, ["bits"]),
        ({"training": {"deepspeed": "no.json"}}, ["deepspeed", "does not exist"]),
        ({"model": {"path": "/nowhere/at/all"}}, ["/nowhere/at/all"]),
        ({"model": {"path": "BASE", "family": "qwen2_vl"}}, ["model.family", "llava"]),
        ({"launcher": {"processes": 3}}, ["global_batch_size", "3 processes"]),
        ({"image_folder": "pictures"}, ["image_folder", "no folder"]),
    ],
)
def test_bad_settings_are_named(tmp_path, base, capsys, settings, words):
    model = settings.pop("model", {"path": "BASE"})
    model = {**model, "path": str(base) if model["path"] == "BASE" else model["path"]}
    write_experiment(tmp_path, {"a": {}, "b": {}}, model=model, **settings)
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    for word in words:
        assert word in text


def test_truth_that_does_not_fit_its_metric(tmp_path, base, capsys):
    code, text = run(tmp_path, base, capsys, {"a": {"metric": "iou"}, "b": {}})
    assert code == 2
    assert "a_val-12.json" in text
    assert "no box" in text
