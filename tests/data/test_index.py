"""The index: bad input is found and named, the cache is right, and nothing half-written is left."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from llava.data import images as images_module
from llava.data.errors import REASONS, DataError
from llava.data.images import ImageFolder
from llava.data.index import copy_problems, in_use
from llava.data.index_rows import IndexSettings, run_batches
from llava.data.store import PROBLEMS_FILE, SAMPLES_FILE, SUMMARY_FILE, SampleStore, read_summary
from tests.data.world import index, llava_processor, qwen_processor, record, save_image, write_json


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return llava_processor(tmp_path_factory.mktemp("tokenizer"))


GOOD = record("<image>\nWhat?", "A cat.", record_id="good", image="a.png")


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    path = tmp_path_factory.mktemp("huge") / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, huge):
    images = tmp_path / "images"
    save_image(images / "a.png")
    save_image(tmp_path / "outside.png")
    save_image(tmp_path / "images-of-others" / "x.png")
    (images / "link.png").symlink_to(tmp_path / "outside.png")
    (images / "linked").symlink_to(tmp_path / "images-of-others")
    (images / "inner.png").symlink_to(images / "a.png")
    (images / "broken.png").write_bytes(b"GIF of a cat")
    (images / "dangling.png").symlink_to(images / "nowhere.png")
    (images / "folder").mkdir()
    whole = save_image(images / "whole.jpg", 400, 400).read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "trailing.jpg").write_bytes(whole + b"made by a camera")
    whole = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "huge.png").write_bytes(huge)
    return tmp_path


def bad_image(path):
    return record("<image>\nWhat?", "A cat.", record_id="bad", image=path)


def turns(*pairs):
    return {"id": "bad", "task": "vqa", "conversations": [{"from": who, "value": text} for who, text in pairs]}


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


def ids_of(result):
    store = SampleStore(result)
    return [store[i].record_id for i in range(len(store))]


def test_json_lines_byte_order_mark_and_several_files(folder, llava):
    records = [record("a", "b", record_id=str(i)) for i in range(3)]
    first = write_json(folder / "1.jsonl", records[:2], lines=True)
    second = folder / "2.json"
    second.write_bytes(b"\xef\xbb\xbf" + json.dumps(records[2:]).encode())
    assert ids_of(index(folder, [], llava, data_paths=[first, second])) == ["0", "1", "2"]
    assert ids_of(index(folder, [], llava, data_paths=[second, first])) == ["2", "0", "1"]


def test_task_of_a_file(folder, llava):
    one = write_json(folder / "one.json", [record("a", "b", task=None), record("a", "b", task="chat")])
    two = write_json(folder / "two.json", [record("a", "b", task=None)])
    for names in ({str(one): "caption", str(two): "vqa"}, {"one.json": "caption", "two.json": "vqa"}):
        result = index(
            folder, [], llava, data_paths=[one, two], file_tasks=names, cache_dir=folder / str(len(str(names)))
        )
        assert SampleStore(result).column("task_id").tolist() == [1, 2, 0]
    with pytest.raises(DataError, match=r"three\.json, which is not among the data files"):
        index(folder, [], llava, data_paths=[one], file_tasks={"three.json": "vqa"})
    with pytest.raises(DataError, match="unknown_task: task 'other'"):
        index(folder, [], llava, data_paths=[one], file_tasks={"one.json": "other"})


def test_tasks_as_they_come(folder, llava):
    records = [record("a", "b", task=task) for task in ("x", "y", "x", "z")]
    result = index(folder, records, llava, task_names=None)
    assert read_summary(result)["task_names"] == ["x", "y", "z"]
    assert SampleStore(result).column("task_id").tolist() == [0, 1, 0, 2]


def test_summary_counts_and_task_without_samples(folder, llava, caplog):
    with caplog.at_level("WARNING"):
        result = index(folder, [GOOD, record("a", "b", task="chat")], llava)
    summary = read_summary(result)
    assert summary["num_samples"] == 2
    assert summary["task_names"] == ["vqa", "caption", "chat"]
    assert summary["per_task"]["vqa"]["images"] == 1
    assert summary["per_task"]["chat"]["target_tokens"] == 2  # "b", "</s>"
    assert summary["per_task"]["caption"] == {}
    assert "task caption has no sample" in caplog.text
    [file] = summary["settings"]["files"]
    assert file["size"] == (folder / "data.json").stat().st_size


def test_leading_answer_is_dropped_as_in_llava(folder, llava):
    content = turns(("gpt", "lost question's answer"), ("human", "a"), ("gpt", "b"))
    plain = turns(("human", "a"), ("gpt", "b"))
    store = SampleStore(index(folder, [content, plain], llava))
    assert store[0].input_ids.tolist() == store[1].input_ids.tolist()


def stamp_of(result):
    return os.stat(result / "samples.arrow").st_ino


def test_cache_is_used_and_only_for_the_same_data_and_settings(folder, llava):
    result = index(folder, [GOOD], llava)
    made = stamp_of(result)
    assert index(folder, [GOOD], llava) == result
    assert stamp_of(result) == made
    others = [
        index(folder, [GOOD], llava, model_max_length=100),
        index(folder, [GOOD], llava, template="llava_v1"),
        index(folder, [GOOD], llava, task_names=["chat", "caption", "vqa"]),
        index(folder, [GOOD], llava, bad_samples="skip"),
        index(folder, [GOOD, GOOD], llava),
        index(folder, [GOOD], qwen_processor()),
    ]
    assert len({result, *others}) == 7


def test_what_a_killed_build_left_goes_and_a_running_one_stays(folder, llava):
    cache = folder / "cache"
    for name in (".index-killed", ".index-running"):
        (cache / name / "index").mkdir(parents=True)
    (cache / ".index-killed/lock").touch()
    with in_use(cache / ".index-running"):
        result = index(folder, [GOOD], llava)
        assert sorted(path.name for path in cache.iterdir()) == [".index-running", result.name]
    index(folder, [GOOD], llava, template="llava_v1")
    assert not list(cache.glob(".index-*"))


def test_a_changed_tokenizer_is_another_index(folder, tmp_path, llava):
    newer = llava_processor(tmp_path / "newer", legacy=False)
    assert index(folder, [GOOD], llava) != index(folder, [GOOD], newer)


def test_cache_notices_images_that_go_and_come(folder, llava):
    save_image(folder / "images" / "b.png")
    records = [GOOD, bad_image("b.png")]
    result = index(folder, records, llava, bad_samples="skip")
    assert ids_of(result) == ["good", "bad"]
    (folder / "images" / "b.png").unlink()
    assert ids_of(index(folder, records, llava, bad_samples="skip")) == ["good"]
    with pytest.raises(DataError, match=r"b\.png"):
        index(folder, records, llava)
    save_image(folder / "images" / "b.png")
    assert ids_of(index(folder, records, llava, bad_samples="skip")) == ["good", "bad"]


def test_cache_notices_an_image_that_is_another(folder, llava):
    """A new image of the same name and shape, and one of another shape."""
    image = folder / "images" / "a.png"
    first = index(folder, [GOOD], llava)
    kept = stamp_of(first)
    assert stamp_of(index(folder, [GOOD], llava)) == kept
    for size in ((28, 28), (56, 28)):
        Image.new("RGB", size, (1, 2, 3)).save(image)
        assert stamp_of(index(folder, [GOOD], llava)) != kept
        kept = stamp_of(first)
    assert SampleStore(first)[0].image_sizes.tolist() == [28, 56]


def one_digit_other(content):
    """The same but for one bit, which leaves the file readable: a token, a number or a name is another."""
    place = max(content.rfind(text) for text in (b"a.png", b"nowhere", b"skip"))
    assert place >= 0
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("kind", ["cut", "emptied", "removed", "flipped"])
@pytest.mark.parametrize("name", [SAMPLES_FILE, SUMMARY_FILE, PROBLEMS_FILE])
def test_a_damaged_index_is_built_again(folder, llava, name, kind, caplog):
    records = [GOOD, bad_image("nowhere.png")]
    result = index(folder, records, llava, bad_samples="skip")
    whole = {file.name: file.read_bytes() for file in result.iterdir()}
    if kind == "removed":
        (result / name).unlink()
    else:
        content = whole[name]
        damaged = {"cut": content[: len(content) // 2], "emptied": b"", "flipped": one_digit_other(content)}
        (result / name).write_bytes(damaged[kind])
    assert index(folder, records, llava, bad_samples="skip") == result
    assert {file.name: file.read_bytes() for file in result.iterdir()} == whole
    assert "is damaged" in caplog.text


def test_failure_leaves_nothing_behind(folder, llava, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llava.data.index._Builder.summary", fail)
        with pytest.raises(KeyboardInterrupt):
            index(folder, [GOOD], llava)
    assert not list((folder / "cache").iterdir())
    assert ids_of(index(folder, [GOOD], llava)) == ["good"]


def test_loser_of_a_race_takes_the_winners_index(folder, llava, monkeypatch):
    """Another process puts the same index in place at the last moment."""
    rename = os.rename
    winners = []

    def late_rename(source, target):
        shutil.copytree(source, target)
        winners.append(stamp_of(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", late_rename)
    result = index(folder, [GOOD], llava)
    assert winners == [stamp_of(result)]
    assert ids_of(result) == ["good"]
    assert [path.name for path in (folder / "cache").iterdir()] == [result.name]


def test_several_processes_give_the_same_index(folder, llava, monkeypatch):
    monkeypatch.setattr("llava.data.index_rows._RECORDS_PER_BATCH", 7)
    records = []
    for i in range(50):
        records.append(record("<image>\nWhat?", f"A cat {i}." * (i % 5 + 1), record_id=str(i), image="a.png"))
        records.append(record("a", "" if i % 9 == 0 else "b", record_id=f"t{i}", task="chat"))
    alone = index(folder, records, llava, bad_samples="skip", cache_dir=folder / "alone")
    together = index(folder, records, llava, bad_samples="skip", num_workers=2)
    for name in ("samples.arrow", PROBLEMS_FILE, "summary.json"):
        assert (alone / name).read_bytes() == (together / name).read_bytes()


def test_copied_list_of_records_left_out(folder, llava):
    result = index(folder, [GOOD, record("a", "")], llava, bad_samples="skip")
    assert copy_problems(result, folder / "left_out.jsonl") == 1
    assert (folder / "left_out.jsonl").read_bytes() == (result / PROBLEMS_FILE).read_bytes()


def test_bad_settings(folder, llava):
    with pytest.raises(ValueError, match="bad_samples must be"):
        index(folder, [GOOD], llava, bad_samples="ignore")
    with pytest.raises(ValueError, match="task names must be given once each"):
        index(folder, [GOOD], llava, task_names=["vqa", "vqa"])
    with pytest.raises(ValueError, match="unknown conversation template"):
        index(folder, [GOOD], llava, template="v7")


def test_a_folder_that_is_no_index(tmp_path):
    with pytest.raises(DataError, match="is not a data index"):
        SampleStore(tmp_path)


@pytest.mark.parametrize("lines", [True, False])
def test_reading_holds_one_record_at_a_time(tmp_path, lines):
    """40 MB of records are read in well under that much memory."""
    path = tmp_path / "large.json"
    one = json.dumps({"id": 1, "conversations": [{"from": "human", "value": "x" * 4000}]})
    with open(path, "w") as file:
        file.write(one if lines else f"[{one}")
        for _ in range(10_000):
            file.write(("\n" if lines else ", ") + one)
        file.write("" if lines else "]")
    code = (
        "import resource, sys; from llava.data.records import read_records\n"
        "next(iter(read_records(sys.argv[1])))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(1 for _ in read_records(sys.argv[1]))\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    output = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout
    count, kilobytes = map(int, output.split())
    assert count == 10_001
    assert kilobytes < 12_000


def test_bytes_of_progress_add_up(folder, llava, monkeypatch):
    monkeypatch.setattr("llava.data.index_rows._RECORDS_PER_BATCH", 2)
    paths = [write_json(folder / "1.jsonl", [GOOD] * 5, lines=True), write_json(folder / "2.json", [GOOD] * 4)]
    settings = IndexSettings(llava, "v1", 256, str(folder / "images"))
    read = [result.num_bytes for result in run_batches(paths, settings, 0, 1)]
    assert sum(read) == sum(path.stat().st_size for path in paths)
    assert min(read) >= 0


def test_an_image_is_looked_at_once_however_many_records_have_it(tmp_path, monkeypatch, llava):
    looked = []
    size = ImageFolder.size
    monkeypatch.setattr(ImageFolder, "size", lambda self, path: looked.append(path) or size(self, path))
    save_image(tmp_path / "images" / "a.png")
    save_image(tmp_path / "images" / "b.png")
    records = [record("<image>\nq", f"answer {i}", record_id=str(i), image="ab"[i % 2] + ".png") for i in range(700)]
    store = SampleStore(index(tmp_path, records, llava))
    assert len(store) == 700
    assert sorted(looked) == ["a.png", "b.png"]
