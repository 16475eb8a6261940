import json
import shutil
from collections import Counter

import pytest

from tests.prepare import publishers
from tests.prepare.checks import check_training_files, load, pairs, run, shared_data
from visatb.experiment.read import load_experiment
from visatb.prepare.chat import Chat


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return publishers.chat(tmp_path_factory.mktemp("chat") / "source")


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "chat"
    assert run("chat", source, output) == 0
    return output


def test_counts_and_form(prepared):
    counts = {task: [len(load(prepared, task, split)) for split in ("train", "val", "test")] for task in Chat.tasks}
    assert counts == {"conversation": [4, 2, 1], "detail": [3, 2, 1], "complex_reasoning": [2, 2, 1]}
    check_training_files(prepared, Chat.tasks)
    assert len(pairs(load(prepared, "conversation", "train")[0])) == 3


def test_questions_carry_what_a_judge_needs(prepared):
    first = load(prepared, "detail", "val")[0]
    assert first == {
        "id": "llava_bench_coco-1",
        "question_id": 1,
        "image": "coco/val2014/COCO_val2014_000000000500.jpg",
        "category": "detail",
        "context": "A cup.\nTea.\n\ncup: [0.1, 0.2, 0.3, 0.4]",
        "conversations": [
            {"from": "human", "value": "<image>\nQuestion 1?"},
            {"from": "gpt", "value": "Answer 1."},
        ],
        "task": "detail",
    }
    (wild,) = load(prepared, "complex_reasoning", "test")
    assert wild["image"] == "llava-bench-in-the-wild/images/001.jpg"
    assert (wild["context"], pairs(wild)) == ("A wild view.", [("<image>\nWild 2?", "Tame 2.")])
    for task in Chat.tasks:
        for split in ("val", "test"):
            assert all((prepared / "images" / record["image"]).is_file() for record in load(prepared, task, split))


def test_the_experiment_file_runs_on_what_was_prepared(prepared):
    experiment = load_experiment(prepared / "chat.yaml")
    files = [file for task in experiment.tasks.values() for file in [*task.train, task.val, task.test]]
    assert sorted(files) == sorted(str(path) for path in prepared.glob("*_*-*.json"))


def test_the_published_bench(source, tmp_path):
    """The 90 published questions: 30 of each category, on 30 images."""
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    shutil.rmtree(copy / "llava_bench_coco")
    shutil.copytree(shared_data("llava_bench_coco"), copy / "llava_bench_coco")
    assert run("chat", copy, tmp_path / "out") == 0
    questions = [record for task in Chat.tasks for record in load(tmp_path / "out", task, "val")]
    assert Counter(record["category"] for record in questions) == {"conv": 30, "detail": 30, "complex": 30}
    assert sorted(record["question_id"] for record in questions) == list(range(90))
    assert len({record["image"] for record in questions}) == 30
    first = next(record for record in questions if record["question_id"] == 0)
    assert first["image"] == "coco/val2014/COCO_val2014_000000441147.jpg"
    assert pairs(first) == [
        (
            "<image>\nWhat is the color of the two suitcases in the image?",
            "The colors of the two suitcases in the image are black and brown with yellow details.",
        )
    ]
    assert "suitcase: [" in first["context"]
    rows = json.loads((tmp_path / "out/prepared.json").read_text())["summary"]
    assert sum(row["images_missing"] for row in rows if row["split"] == "val") == 90  # the pictures are COCO's


def drop_answer(folder):
    path = folder / "qa90_gpt4_answer.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def other_category(folder):
    path = folder / "qa90_questions.jsonl"
    path.write_text(path.read_text().replace('"complex"', '"hard"'))


def no_context(folder):
    (folder / "caps_boxes_coco2014_val_80.jsonl").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_answer, "no answer to question 5"),
        (other_category, "category 'hard'"),
        (no_context, "caps_boxes_coco2014_val_80.jsonl"),
    ],
)
def test_bad_files_are_named(spoil, message, tmp_path, capsys):
    source = publishers.chat(tmp_path / "source")
    spoil(source / "llava_bench_coco")
    assert run("chat", source, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
