"""Bad input is found and named, or skipped and counted, before anything is built of it."""

import json

import pytest

from llava.data import images as images_module
from llava.data.errors import REASONS, DataError
from llava.data.store import PROBLEMS_FILE, SampleStore, read_summary
from tests.data.world import GOOD, bad_image, index, qwen_processor, record, save_image, turns, write_json

BAD = [
    ("missing_image", bad_image("gone.png"), "there is no file .*gone.png"),
    ("missing_image", bad_image("folder"), "there is no file"),
    ("missing_image", bad_image("dangling.png"), "there is no file"),
    ("image_outside_folder", bad_image("../outside.png"), "outside"),
    ("image_outside_folder", bad_image("folder/../../outside.png"), "outside"),
    ("image_outside_folder", bad_image("../images-of-others/x.png"), "outside"),
    ("image_outside_folder", bad_image("/etc/hostname"), "outside"),
    ("image_outside_folder", bad_image("link.png"), "leads to .*outside.png"),
    ("image_outside_folder", bad_image("linked/x.png"), "leads to .*images-of-others"),
    ("unreadable_image", bad_image("broken.png"), "broken.png"),
    ("unreadable_image", bad_image("cut.jpg"), "cut.jpg"),
    ("unreadable_image", bad_image("cut.png"), "cut.png"),
    ("huge_image", bad_image("huge.png"), "huge.png"),
    ("bad_image_field", bad_image(".."), "names no file"),
    ("bad_image_field", bad_image(""), "`image` is"),
    ("bad_image_field", bad_image({"path": "a.png"}), "`image` is"),
    ("image_count_mismatch", record("What?", "x", record_id="bad", image="a.png"), "0 <image> in the turns, 1 images"),
    ("image_count_mismatch", record("<image> What?", "x", record_id="bad"), "1 <image> in the turns, 0 images"),
    ("image_count_mismatch", record("<image><image>", "x", record_id="bad", image="a.png"), "2 <image>"),
    ("unknown_task", record("a", "b", record_id="bad", task="vqaa"), "'vqaa'; tasks are vqa, caption, chat"),
    ("unknown_task", record("a", "b", record_id="bad") | {"task": 3}, "task 3"),
    ("missing_task", record("a", "b", record_id="bad", task=None), "names no task"),
    ("empty_answer", record("a", " \n", record_id="bad"), "turn 2 is empty"),
    ("empty_question", record("", "b", record_id="bad"), "turn 1 is empty"),
    ("not_alternating", turns(("human", "a"), ("human", "b"), ("gpt", "c")), "turn 2 is from human"),
    ("not_alternating", turns(("human", "a"), ("gpt", "b"), ("gpt", "c")), "turn 3 is from gpt"),
    ("not_alternating", turns(("human", "a"), ("gpt", "b"), ("human", "c")), "no answer"),
    ("not_alternating", turns(("gpt", "a")), "no answer"),
    ("bad_conversation", turns(("user", "a"), ("gpt", "b")), "from 'user'"),
    ("bad_conversation", {"id": "bad", "task": "vqa"}, "missing or empty"),
    ("bad_conversation", {"id": "bad", "task": "vqa", "conversations": [{"from": "human"}]}, "no text"),
    ("bad_conversation", turns(("human", "a"), ("gpt", ["b", "c"])), "turn 2 has no text"),
]


@pytest.mark.parametrize(("reason", "content", "message"), BAD, ids=[f"{bad[0]}-{i}" for i, bad in enumerate(BAD)])
def test_bad_record_is_named_or_skipped(folder, llava, reason, content, message):
    with pytest.raises(DataError, match=message) as caught:
        index(folder, [GOOD, content], llava)
    text = str(caught.value)
    assert f"data.json, record bad (no. 1): {reason}:" in text
    assert REASONS[reason] in text
    assert not list((folder / "cache").iterdir())

    result = index(folder, [GOOD, content], llava, bad_samples="skip")
    assert read_summary(result)["skipped"] == {reason: 1}
    [listed] = [json.loads(line) for line in (result / PROBLEMS_FILE).read_text().splitlines()]
    assert (listed["record_id"], listed["position"], listed["reason"]) == ("bad", 1, reason)
    store = SampleStore(result)
    assert [store[i].record_id for i in range(len(store))] == ["good"]


def test_a_record_that_is_no_object_and_one_without_id(folder, llava):
    nameless = record("a", "")
    del nameless["id"]
    with pytest.raises(DataError, match=r"record #1 \(no. 1\): not_a_record(.|\n)*record #2 \(no. 2\): empty_answer"):
        index(folder, [GOOD, "text", nameless], llava)


@pytest.mark.parametrize("image", ["trailing.jpg", "inner.png", "folder/../a.png"])
def test_good_images_that_look_odd(folder, llava, image):
    assert len(SampleStore(index(folder, [bad_image(image)], llava))) == 1


def test_absolute_path_inside_the_folder(folder, llava):
    assert len(SampleStore(index(folder, [bad_image(str(folder / "images" / "a.png"))], llava))) == 1


def test_pixel_limit_is_exact(folder, llava, monkeypatch):
    save_image(folder / "images" / "ten.png", 2, 5)
    monkeypatch.setattr(images_module, "MAX_PIXELS", 10)
    assert len(SampleStore(index(folder, [bad_image("ten.png")], llava))) == 1
    save_image(folder / "images" / "again.png", 2, 5)
    monkeypatch.setattr(images_module, "MAX_PIXELS", 9)
    with pytest.raises(DataError, match="5 × 2 pixels, more than 9"):
        index(folder, [bad_image("again.png"), GOOD], llava)


def test_shape_that_a_family_refuses(folder):
    save_image(folder / "images" / "strip.png", 1, 900)
    with pytest.raises(DataError, match=r"unfit_image: strip\.png, 900 × 1 pixels"):
        index(folder, [bad_image("strip.png")], qwen_processor())


def test_placeholder_token_written_in_the_text(tmp_path):
    content = record("What does <|image_pad|> mean?", "x", record_id="bad")
    with pytest.raises(DataError, match="1 image tokens in the tokenised text, 0 images"):
        index(tmp_path, [content], qwen_processor())


def test_problems_are_reported_together(folder, llava):
    records = [record("a", "", record_id=f"bad{i}") for i in range(3)] + [bad_image("gone.png")]
    with pytest.raises(DataError) as caught:
        index(folder, records, llava)
    text = str(caught.value)
    assert text.startswith("4 bad records:")
    assert all(f"record bad{i} " in text for i in range(3))
    assert "gone.png" in text
    with pytest.raises(DataError) as caught:
        index(folder, [record("a", "", record_id=f"bad{i}") for i in range(50)], llava)
    text = str(caught.value)
    assert (text.count("empty_answer: turn"), "and 47 more in" in text) == (3, True)
    assert text.startswith("50 bad records, and what follows is not read:")
    assert "training: {bad_samples: skip}" in text


def test_each_cause_is_shown_and_counted_by_itself(folder, llava):
    records = [record("a", "b", record_id=f"task{i}", task="other") for i in range(5)]
    records += [bad_image("../outside.png"), *records[:4]]
    with pytest.raises(DataError) as caught:
        index(folder, records, llava)
    text = str(caught.value)
    assert text.startswith("10 bad records:")
    assert (text.count("tasks are vqa"), text.count("../outside.png leads"), text.count("… and 6 more")) == (3, 1, 1)


def test_no_image_folder(folder, llava):
    with pytest.raises(DataError, match=r"image a\.png, but no image folder is given"):
        index(folder, [GOOD], llava, image_folder=None)


def test_nothing_left(folder, llava):
    with pytest.raises(DataError, match=r"no usable sample \(empty_answer: 1\)"):
        index(folder, [record("a", "")], llava, bad_samples="skip")
    with pytest.raises(DataError, match=r"no usable sample \(no records at all\)"):
        index(folder, [], llava)


@pytest.mark.parametrize("keep", [1, 40, 200, -1, -3, -30])
@pytest.mark.parametrize("mode", ["error", "skip"])
def test_json_that_is_cut_off(folder, llava, keep, mode):
    path = write_json(folder / "cut.json", [GOOD, GOOD, GOOD])
    path.write_text(path.read_text()[:keep])
    with pytest.raises(DataError, match=r"cut.json is (cut off or broken|not valid JSON) after \d complete records"):
        index(folder, [GOOD], llava, data_paths=[path], bad_samples=mode)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b'"text"', "begins with"),
        (b'[{"id": 1} {"id": 2}]', "not valid JSON|cut off or broken"),
        (b'[{"id": "\xff\xfe"}]', "not in UTF-8"),
        (b'{"id": 1}\n{"id": 2', r"line 2: not a whole JSON record"),
        (b'[{"id": 1}] trailing', "not valid JSON|cut off or broken"),
    ],
)
def test_file_that_is_no_list_of_records(folder, llava, content, message):
    path = folder / "odd.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        index(folder, [GOOD], llava, data_paths=[path], bad_samples="skip")
    assert "odd.json" in str(caught.value)


def test_missing_data_file(folder, llava):
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        index(folder, [GOOD], llava, data_paths=[folder / "nowhere.json"])
