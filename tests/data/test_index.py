"""The index: the cache is right, damage is noticed, and nothing half-written is left."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from llava.data.errors import DataError
from llava.data.images import ImageFolder
from llava.data.index import copy_problems, in_use
from llava.data.index_rows import IndexSettings, run_batches
from llava.data.store import PROBLEMS_FILE, SAMPLES_FILE, SUMMARY_FILE, SampleStore, read_summary
from tests.data.world import (
    GOOD,
    bad_image,
    index,
    llava_processor,
    qwen_processor,
    record,
    save_image,
    turns,
    write_json,
)


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
