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
