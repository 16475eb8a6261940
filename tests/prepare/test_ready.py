import json
from pathlib import Path

import pytest

from tests.prepare import publishers
from tests.prepare.checks import load, run
from visatb.prepare.ready import parse_name


def record(number, task=None):
    turns = [publishers.turn("human", "<image>\nWhat?"), publishers.turn("gpt", "This.")]
    return {"id": f"{number}", "image": "a.jpg", "conversations": turns} | ({"task": task} if task else {})


def files(folder, sizes, task=None):
    for name, number in sizes.items():
        publishers.put(folder / name, [record(n, task) for n in range(number)])
    publishers.picture(folder / "a.jpg")
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GQA_train-72k.json", ("GQA", "", "train", 72_000)),
        ("academic/GQA-mini_train-2250.json", ("GQA", "-mini", "train", 2_250)),
        ("RefCOCO-caption-plus-mini_train-55.5k.json", ("RefCOCO-caption", "-plus-mini", "train", 55_500)),
        ("complex_reasoning_val-30.json", ("complex_reasoning", "", "val", 30)),
        ("m3it_train-1.2M.json", ("m3it", "", "train", 1_200_000)),
    ],
)
def test_names(name, said):
    file = parse_name(Path(name))
    assert (file.task, file.kind, file.split, file.size) == said


@pytest.mark.parametrize("name", ["prepared.json", "GQA_train.json", "GQA_dev-3.json", "GQA_train-3.txt"])
def test_other_files_are_left_alone(name):
    assert parse_name(Path(name)) is None


@pytest.mark.parametrize(
    ("size", "number", "fits"),
    [
        ("20", 20, True),
        ("20", 21, False),
        ("41k", 41_900, True),
        ("41k", 40_600, True),
        ("41k", 40_400, False),
        ("41k", 42_000, False),
        ("12.6k", 12_578, True),
        ("12.6k", 12_700, False),
        ("1.2M", 1_163_000, True),
    ],
)
def test_sizes(size, number, fits):
    assert parse_name(Path(f"GQA_train-{size}.json")).fits(number) is fits


def test_files_are_taken_over_by_name_with_their_task(tmp_path):
    sizes = {"gqa_train-6.json": 6, "gqa_val-2.json": 2, "gqa_test-3.json": 3, "gqa-mini_train-1.json": 1}
    source = files(tmp_path / "source", sizes | {"ref_caption_train-5.json": 5, "ref_caption_val-1.json": 1})
    assert run("academic", source, tmp_path / "out", "--ready", "--tasks", "RefCOCO-caption", "GQA") == 0
    assert [len(load(tmp_path / "out", "GQA", split)) for split in ("train", "val", "test")] == [6, 2, 3]
    assert load(tmp_path / "out", "RefCOCO-caption", "train") == [record(n, "RefCOCO-caption") for n in range(5)]
    assert (tmp_path / "out/images/a.jpg").is_file()


def test_a_benchmarks_common_file_is_parted_by_task(tmp_path):
    labels = ["conversation", "detail", "complex_reasoning", "detail"]
    publishers.put(tmp_path / "source/chat_train-4.json", [record(n, label) for n, label in enumerate(labels)])
    assert run("chat", tmp_path / "source", tmp_path / "out", "--ready") == 0
    assert [entry["id"] for entry in load(tmp_path / "out", "detail", "train")] == ["1", "3"]


@pytest.mark.parametrize("name", ["gqa_train-7.json", "gqa-mini_train-5.json", "gqa-plus-mini_train-1k.json"])
def test_a_wrong_size_is_an_error_that_names_the_file(tmp_path, capsys, name):
    source = files(tmp_path / "source", {"gqa_train-6.json": 6, name: 6})
    assert run("academic", source, tmp_path / "out", "--ready", "--tasks", "GQA") == 2
    error = capsys.readouterr().err
    assert f"{name} holds 6 records, but its name says" in error
    assert not (tmp_path / "out").exists()


def test_a_missing_task_is_named(tmp_path, capsys):
    source = files(tmp_path / "source", {"gqa_train-6.json": 6})
    assert run("academic", source, tmp_path / "out", "--ready", "--tasks", "GQA", "VQAv2") == 2
    assert "no VQAv2_train-SIZE.json" in capsys.readouterr().err


def test_no_ready_file(tmp_path, capsys):
    publishers.put(tmp_path / "source/data.json", [])
    assert run("academic", tmp_path / "source", tmp_path / "out", "--ready") == 2
    assert "holds no file named {task}_{train|val|test}-{size}.json" in capsys.readouterr().err


def test_equal_settings_are_not_prepared_twice_and_changed_files_are(tmp_path, caplog):
    source = files(tmp_path / "source", {"gqa_train-6.json": 6})
    arguments = ("academic", source, tmp_path / "out", "--ready", "--tasks", "GQA")
    assert run(*arguments) == 0
    before = (tmp_path / "out/GQA_train-6.json").stat().st_ino
    assert run(*arguments) == 0
    assert (tmp_path / "out/GQA_train-6.json").stat().st_ino == before
    content = json.loads((source / "gqa_train-6.json").read_text())
    (source / "gqa_train-6.json").write_text(json.dumps(content, indent=1))
    assert run(*arguments) == 2  # not replaced unasked
    assert run(*arguments, "--overwrite") == 0
