"""Question files: what is read, and what is refused."""

import json
import os

import pytest

from llava.data.errors import DataError
from llava.infer.questions import read_questions
from tests.infer.conftest import write


def pair(question="what?", truth="red", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": truth}]
    return {"id": "r0", "conversations": turns, **fields}


def test_questions_without_their_truth(world):
    file = read_questions(world / "cap_val-5.json", world / "images")
    records = json.loads((world / "cap_val-5.json").read_text())
    assert file.records == records
    assert [request.id for request in file.requests] == list(range(5))
    for request, record in zip(file.requests, records, strict=True):
        assert list(request.messages) == record["conversations"][:1]
        wanted = [os.path.realpath(world / "images" / record["image"])] if "image" in record else []
        assert list(request.images) == wanted


def test_answers_go_into_the_second_turn(world):
    file = read_questions(world / "cap_val-5.json", world / "images")
    answered = file.answered([f"answer {n}" for n in range(5)], "plus_mini:vqa")
    for place, (record, was) in enumerate(zip(answered, file.records, strict=True)):
        turn = record["conversations"][1]
        assert turn.pop("generative_value") == f"answer {place}"
        assert turn.pop("generator") == "plus_mini:vqa"
        assert record == was


def test_truths_of_any_kind_roles_of_either_name_and_ids(tmp_path):
    records = [
        pair(truth=["a", "b"]),
        pair(truth="", question_id=7),
        {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "<image>"}]},
        pair(truth=None, task=None),
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, records)))
    file = read_questions(tmp_path / "q.jsonl", None)
    assert file.records == records
    assert [file.question_id(place) for place in range(4)] == ["r0", "7", "2", "r0"]
    assert len(read_questions(tmp_path / "q.jsonl", None, max_samples=2).records) == 2


THREE = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (pair(conversations=THREE), "exactly one human/assistant pair, found 3 turns"),
        (pair(conversations=THREE[:1]), "found 1 turns"),
        (pair(conversations=None), "found no list of turns"),
        (pair(conversations=THREE[1:]), "found gpt and human"),
        (pair(conversations=["a", "b"]), "found 2 turns"),
        (pair(question=" "), "empty"),
        (pair(question=None), "no text"),
        (pair("<image>\nq", image="nowhere.png"), "there is no file .*nowhere.png.*correct the path"),
        (pair("<image>\nq", image="../vqa_val-7.json"), "outside"),
        (pair("<image>\nq", image="text.png"), "text.png"),
        (pair("<image>\nq"), "1 <image> in the turns, 0 images"),
        (pair(image="0.png"), "0 <image> in the turns, 1 images"),
        (pair("<image>\nq", image=3), "`image` is 3"),
    ],
)
def test_a_bad_record_is_named_with_what_would_mend_it(world, record, message):
    (world / "images" / "text.png").write_text("no image")
    write(world / "bad.json", [pair(), {**record, "id": "rotten"}])
    with pytest.raises(DataError, match=message) as caught:
        read_questions(world / "bad.json", world / "images")
    assert f"{world / 'bad.json'}, record rotten (no. 1)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "holds no question"), ('[{"id": 1', "cut off"), ("", "empty"), ("[3]", "found a int")]
)
def test_a_bad_file_is_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=rf"bad\.json.*{message}"):
        read_questions(tmp_path / "bad.json", None)


def test_files_and_folders_that_are_not_there(world):
    with pytest.raises(DataError, match=r"nothing\.json"):
        read_questions(world / "nothing.json", None)
    with pytest.raises(DataError, match="no such folder"):
        read_questions(world / "vqa_val-7.json", world / "nothing")
    with pytest.raises(DataError, match=r"record vqa1 .*no --image-folder is given"):
        read_questions(world / "vqa_val-7.json", None)


def test_many_bad_records_are_counted_and_a_worker_reads_its_own_images(world):
    (world / "images" / "text.png").write_text("no image")
    write(world / "bad.json", [pair("<image>\nq", image="text.png", id=f"r{n}") for n in range(9)])
    with pytest.raises(DataError, match=r"r4 .*\n… and 4 more"):
        read_questions(world / "bad.json", world / "images")
    with pytest.raises(DataError, match="r1 ") as caught:
        read_questions(world / "bad.json", world / "images", part=slice(1, None, 2))
    assert "record r0" not in str(caught.value)
