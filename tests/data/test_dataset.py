"""Index and dataset together: what comes out equals what a straight encoding of the records gives."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from llava.constants import IGNORE_INDEX
from llava.data.collator import Collator
from llava.data.dataset import InstructionDataset
from llava.data.errors import DataError
from llava.data.store import PROBLEMS_FILE
from llava.data.template import encode
from tests.data.world import IMAGE_TOKENS, index, llava_processor, qwen_processor, record, save_image


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return llava_processor(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def qwen():
    return qwen_processor()


def mixed_records(tmp_path):
    save_image(tmp_path / "images" / "a.png", 20, 30, seed=1)
    save_image(tmp_path / "images" / "sub" / "b.jpg", 60, 40, seed=2)
    return [
        record("<image>\nWhat is this?", "A cat.", record_id="one", image="a.png"),
        record("Hello.", "Hi there.", "More?", "No.", record_id="two", task="chat"),
        record(
            "<image> and <image>: which?", "The first.", record_id="three", task="caption", image=["a.png", "sub/b.jpg"]
        ),
    ]


def naive_expansion(ids, labels, image_token_id, counts):
    """One token at a time."""
    counts = list(counts)
    long_ids, long_labels = [], []
    for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
        repeat = counts.pop(0) if token == image_token_id else 1
        long_ids += [token] * repeat
        long_labels += [label] * repeat
    assert not counts
    return long_ids, long_labels


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_samples_are_the_encoded_records(tmp_path, family, request):
    processor = request.getfixturevalue(family)
    records = mixed_records(tmp_path)
    dataset = InstructionDataset(index(tmp_path, records, processor), tmp_path / "images", processor)
    assert dataset.task_names == ["vqa", "caption", "chat"]
    assert dataset.task_ids.tolist() == [0, 2, 1]
    counted = [int((dataset[i]["labels"][1:] != IGNORE_INDEX).sum()) for i in range(3)]
    assert dataset.store.target_tokens().tolist() == counted
    assert dataset.has_image.tolist() == [True, False, True]
    sizes = {"a.png": (20, 30), "sub/b.jpg": (60, 40)}
    for item, content, length in zip(dataset, records, dataset.lengths, strict=True):
        images = content.get("image", [])
        images = [images] if isinstance(images, str) else images
        counts = [processor.num_image_tokens(*sizes[path]) for path in images]
        expected = encode(content["conversations"], processor.default_template, processor)
        ids, labels = naive_expansion(*expected, processor.image_token_id, counts)
        assert item["input_ids"].tolist() == ids
        assert item["labels"].tolist() == labels
        assert item["input_ids"].dtype == item["labels"].dtype == torch.int64
        assert length == len(ids)
        opened = [Image.open(tmp_path / "images" / path).convert("RGB") for path in images]
        pixels = processor.pixel_inputs(opened) if opened else {}
        assert set(item) == {"input_ids", "labels", "vitw_task_ids", *pixels}
        for name, value in pixels.items():
            assert torch.equal(item[name], value)


def test_truncation_never_cuts_an_image(tmp_path, llava, qwen):
    """At every length: the sample is a prefix of the whole one, with whole images only."""
    save_image(tmp_path / "images" / "a.png", 56, 56)
    texts = ("<image> one <image> two", "Short.", "<image>", "And a longer answer here.")
    content = record(*texts, image=["a.png"] * 3)
    for processor in (llava, qwen):
        whole_index = index(tmp_path, [content], processor, model_max_length=1000)
        whole = InstructionDataset(whole_index, tmp_path / "images", processor)[0]
        count = processor.num_image_tokens(56, 56)
        pixels_per_image = len(whole["pixel_values"]) // 3
        shortest = int((whole["labels"] != IGNORE_INDEX).nonzero()[0]) + 1
        seen = set()
        for limit in range(shortest, len(whole["input_ids"])):
            changed = {"model_max_length": limit, "cache_dir": tmp_path / f"{count}-{limit}"}
            folder = index(tmp_path, [content], processor, **changed)
            item = InstructionDataset(folder, tmp_path / "images", processor)[0]
            ids = item["input_ids"]
            assert len(ids) <= limit
            assert torch.equal(ids, whole["input_ids"][: len(ids)])
            assert torch.equal(item["labels"], whole["labels"][: len(ids)])
            images, half = divmod(int((ids == processor.image_token_id).sum()), count)
            assert half == 0
            assert len(item["pixel_values"]) == images * pixels_per_image
            starts = processor.tokenizer.convert_tokens_to_ids("<|vision_start|>")
            if processor is qwen:
                assert int((ids == starts).sum()) == images
            if len(ids) < limit:  # only an image may make a sample shorter than it could be
                assert limit - len(ids) < count + 2
            seen.add(images)
        assert seen == {2, 3}


def test_a_sample_cut_to_nothing_is_counted_and_left_out(tmp_path, llava, caplog):
    records = [record("Hi", "Yes.", record_id="short"), record("word " * 80, "Yes.", record_id="long")]
    with caplog.at_level("WARNING"):
        folder = index(tmp_path, records, llava, model_max_length=60)
    dataset = InstructionDataset(folder, None, llava)
    assert len(dataset) == 1
    assert dataset.store.summary["skipped"] == {"no_target_left": 1}
    assert '"long"' in (folder / PROBLEMS_FILE).read_text()
    assert "1 record left out, no_target_left" in caplog.text
    assert f"long of {tmp_path / 'data.json'}" in caplog.text
    assert "bad_samples.jsonl" not in caplog.text  # after validation its folder is gone


def test_image_that_changed_or_went_bad_after_indexing(tmp_path, llava):
    save_image(tmp_path / "images" / "a.png", 20, 30)
    folder = index(tmp_path, [record("<image>\nx", "y", record_id="one", image="a.png")], llava)
    dataset = InstructionDataset(folder, tmp_path / "images", llava)
    save_image(tmp_path / "images" / "a.png", 20, 31)
    with pytest.raises(DataError, match=r"record one: a.png has changed .*30 × 20 pixels then, 31 × 20 now"):
        dataset[0]
    (tmp_path / "images" / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"record one: unreadable_image: .*a.png"):
        dataset[0]


def test_data_loader_workers_and_pickling(tmp_path, llava):
    dataset = InstructionDataset(index(tmp_path, mixed_records(tmp_path), llava), tmp_path / "images", llava)
    copy = pickle.loads(pickle.dumps(dataset))
    loader = DataLoader(copy, batch_size=3, num_workers=1, collate_fn=Collator(llava, 256))
    [batch] = loader
    expected = Collator(llava, 256)([dataset[i] for i in range(3)])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], value) for name, value in expected.items())


def test_negative_and_outlying_indices(tmp_path, llava):
    dataset = InstructionDataset(index(tmp_path, mixed_records(tmp_path), llava), tmp_path / "images", llava)
    assert torch.equal(dataset[-1]["input_ids"], dataset[2]["input_ids"])
    with pytest.raises(IndexError):
        dataset[3]


def test_many_batches_keep_their_order(tmp_path, llava, monkeypatch):
    """More rows than one Arrow batch holds, and more records than one piece of work."""
    monkeypatch.setattr("llava.data.store._ROWS_PER_BATCH", 3)
    monkeypatch.setattr("llava.data.index_rows._RECORDS_PER_BATCH", 2)
    records = [record(f"q{i}", f"answer {i}" * (i % 3 + 1), record_id=str(i)) for i in range(11)]
    dataset = InstructionDataset(index(tmp_path, records, llava), None, llava)
    assert [dataset.store[i].record_id for i in range(11)] == [str(i) for i in range(11)]
    for i, content in enumerate(records):
        ids, _ = encode(content["conversations"], "v1", llava)
        assert dataset[i]["input_ids"].tolist() == ids.tolist()
        assert dataset.lengths[i] == len(ids)
    assert np.array_equal(dataset.has_image, np.zeros(11, bool))


def test_tokens_of_one_image(llava):
    assert llava.num_image_tokens(20, 30) == IMAGE_TOKENS
