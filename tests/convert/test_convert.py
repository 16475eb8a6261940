import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prepare.publishers import picture, picture_bytes, put, put_lines, turn
from visatb.commands.convert import main

RECORDS = [
    {
        "id": "one",
        "image": "a/one.png",
        "task": "GQA",
        "conversations": [
            turn("human", "<image>\nWhat?"),
            turn("gpt", "This."),
            turn("human", "And?"),
            turn("gpt", "No."),
        ],
    },
    {
        "id": "two",
        "image": ["a/one.png", "two.jpg"],
        "task": "Chart QA",
        "conversations": [turn("human", "<image> or <image>?"), turn("gpt", "Both – déjà vu.")],
    },
    {"id": "text", "task": "GQA", "conversations": [turn("human", "Hello"), turn("gpt", "World")]},
    {
        "id": "question",
        "image": "two.jpg",
        "task": "GQA",
        "question_id": 7,
        "category": "detail",
        "conversations": [turn("human", "<image>\nWhat?"), {"from": "gpt", "value": ["a", "b"]}],
    },
]


@pytest.fixture
def images(tmp_path):
    picture(tmp_path / "images/a/one.png", shade=1)
    picture(tmp_path / "images/two.jpg", shade=2)
    return tmp_path / "images"


def run(*words):
    return main([str(word) for word in words])


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_messages(tmp_path):
    source = put(tmp_path / "in.json", RECORDS)
    assert run(source, tmp_path / "out.jsonl", "--to", "messages") == 0
    first, second, third, fourth = lines(tmp_path / "out.jsonl")
    assert first == {
        "id": "one",
        "channel": "GQA",
        "messages": [
            {"role": "user", "content": "<image>\nWhat?"},
            {"role": "assistant", "content": "This."},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "No."},
        ],
        "images": ["a/one.png"],
    }
    assert (second["channel"], second["images"]) == ("Chart QA", ["a/one.png", "two.jpg"])
    assert "images" not in third
    assert fourth["messages"][1] == {"role": "assistant", "content": "a", "references": ["a", "b"]}
    assert (fourth["question_id"], fourth["category"]) == (7, "detail")


@pytest.mark.parametrize(("form", "suffix"), [("messages", "jsonl"), ("parquet", "parquet")])
def test_there_and_back_is_the_same(tmp_path, images, form, suffix):
    source = put(tmp_path / "in.json", RECORDS)
    assert run(source, tmp_path / f"there.{suffix}", "--to", form, "--image_folder", images) == 0
    back = tmp_path / "back"
    assert run(tmp_path / f"there.{suffix}", tmp_path / "out.json", "--to", "llava", "--image_folder", back) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == RECORDS
    if form == "parquet":
        for name in ("a/one.png", "two.jpg"):
            assert (back / name).read_bytes() == (images / name).read_bytes()


def test_parquet_opens_as_a_data_set_with_decoded_images(tmp_path, images):
    datasets = pytest.importorskip("datasets")
    source = put(tmp_path / "in.json", RECORDS)
    assert run(source, tmp_path / "out.parquet", "--to", "parquet", "--image_folder", images) == 0
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert [[image.size for image in row["images"]] for row in loaded] == [[(28, 28)], [(28, 28)] * 2, [], [(28, 28)]]
    assert loaded[0]["images"][0].getpixel((0, 0)) == (1, 1, 1)
    assert loaded["task"][:] == ["GQA", "Chart QA", "GQA", "GQA"]


def test_parquet_of_others(tmp_path):
    row = {
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This."}],
        "image": {"bytes": picture_bytes(9), "path": None},
        "channel": "VQA",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    arguments = ("--to", "llava", "--image_folder", tmp_path / "images")
    assert run(tmp_path / "in.parquet", tmp_path / "out.json", *arguments) == 0
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert record["conversations"][0]["value"] == "<image>\nWhat?"
    assert record["task"] == "VQA"
    assert (tmp_path / "images" / record["image"]).read_bytes() == picture_bytes(9)


@pytest.mark.parametrize("path", ["../evil.png", "/tmp/evil.png", "a/../../evil.png"])
def test_images_cannot_be_written_outside_their_folder(tmp_path, path, capsys):
    row = {
        "conversations": [turn("human", "<image>"), turn("gpt", "b")],
        "images": [{"bytes": picture_bytes(1), "path": path}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    arguments = ("--to", "llava", "--image_folder", tmp_path / "deep/images")
    assert run(tmp_path / "in.parquet", tmp_path / "out.json", *arguments) == 2
    assert "leads outside" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil.png"))


def test_contents_in_parts(tmp_path):
    user = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]
    record = {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": "This."}]}
    put_lines(tmp_path / "in.jsonl", [record])
    assert run(tmp_path / "in.jsonl", tmp_path / "out.json", "--to", "llava", "--task", "VQA") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"image": "a.png", "task": "VQA", "conversations": [turn("human", "<image>\nWhat?"), turn("gpt", "This.")]}
    ]


@pytest.fixture
def weights(tmp_path):
    return put(tmp_path / "weights.json", {"tasks": ["GQA", "Chart QA"], "weights": {"GQA": 1.25, "Chart QA": 0.75}})


def test_weights_for_ms_swift(tmp_path, images, weights, caplog):
    source = put(tmp_path / "in.json", RECORDS[:3])
    with caplog.at_level(logging.WARNING):
        assert (
            run(source, tmp_path / "o.jsonl", "--to", "ms-swift", "--weights", weights, "--image_folder", images) == 0
        )
    assert "normalises otherwise" in caplog.text
    found = lines(tmp_path / "o.jsonl")
    scales = [[message.get("loss_scale") for message in record["messages"]] for record in found]
    assert scales == [[None, 1.25, None, 1.25], [None, 0.75], [None, 1.25]]
    assert found[1]["images"] == [str(images / "a/one.png"), str(images / "two.jpg")]
    assert found[1]["channel"] == "Chart QA"


def test_weights_for_llama_factory(tmp_path, images, weights, caplog):
    source = put(tmp_path / "in.json", RECORDS[:3])
    arguments = ("--to", "llama-factory", "--weights", weights, "--image_folder", images)
    with caplog.at_level(logging.WARNING):
        assert run(source, tmp_path / "o.jsonl", *arguments) == 0
    assert "normalises otherwise" in caplog.text
    found = lines(tmp_path / "o.jsonl")
    assert found[0]["messages"][:2] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "value": str(images / "a/one.png")},
                {"type": "text", "value": "What?"},
            ],
            "loss_weight": 0.0,
        },
        {"role": "assistant", "content": [{"type": "text", "value": "This."}], "loss_weight": 1.25},
    ]
    assert [part["type"] for part in found[1]["messages"][0]["content"]] == ["image_url", "text", "image_url", "text"]


def bad(tmp_path, content, *arguments):
    source = put(tmp_path / "in.json", content)
    return source, tmp_path / "out.jsonl", *arguments


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ([{"id": "x"}], ("--to", "messages"), "record x: has neither"),
        ([{"id": "x", "conversations": [turn("bot", "a")]}], ("--to", "messages"), "from 'bot'"),
        ([{"id": "x", "conversations": ["a"]}], ("--to", "messages"), "must list objects"),
        ([{"id": "x", "messages": [{"role": "system", "content": "a"}]}], ("--to", "llava"), "not 'system'"),
        (RECORDS, ("--to", "parquet"), "--image_folder says where"),
        (RECORDS, ("--to", "parquet", "--image_folder", "/nowhere"), "no file /nowhere/a/one.png"),
        (RECORDS, ("--to", "ms-swift"), "--weights"),
        (RECORDS, ("--to", "llava", "--weights", "w.json"), "--weights"),
        (RECORDS, ("--to", "ms-swift", "--weights", "/nowhere.json"), "no weights file"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, content, arguments, message, capsys):
    assert run(*bad(tmp_path, content, *arguments)) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def test_tasks_without_a_weight_and_answers_in_lists(tmp_path, weights, capsys):
    source = put(tmp_path / "in.json", [{**RECORDS[0], "task": "OCR"}])
    assert run(source, tmp_path / "o.jsonl", "--to", "ms-swift", "--weights", weights) == 2
    assert "record one: no weight for task 'OCR'; the weights file has GQA, Chart QA" in capsys.readouterr().err
    put(source, RECORDS[3:])
    assert run(source, tmp_path / "o.jsonl", "--to", "ms-swift", "--weights", weights) == 2
    assert "several references" in capsys.readouterr().err


def test_a_file_is_not_written_over_itself(tmp_path, capsys):
    source = put(tmp_path / "in.json", RECORDS)
    assert run(source, source, "--to", "messages") == 2
    assert json.loads(source.read_text()) == RECORDS


def test_the_command_is_registered():
    from visatb.cli import COMMANDS

    assert COMMANDS["convert"][0] == "visatb.commands.convert:main"
    assert COMMANDS["convert-checkpoint"][0] == "llava.model.convert:main"
