"""Batches: padding, packing, and the blank image of batches without any."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.data.collator import Collator, first_fit_decreasing
from tests.data.world import IMAGE_TOKENS, llava_processor, qwen_processor


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return llava_processor(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def qwen():
    return qwen_processor()


def sample(processor, length, task, images=(), targets=2):
    """`length` text tokens, then each image's tokens, then a few more; the last `targets` tokens are targets."""
    ids = list(range(100, 100 + length))
    ids = [token for token in ids if token != processor.image_token_id]
    image_ids = processor.tokenizer(processor.image_text, add_special_tokens=False).input_ids
    opened = []
    for height, width, shade in images:
        for token in image_ids:
            count = processor.num_image_tokens(height, width) if token == processor.image_token_id else 1
            ids += [token] * count
        ids += [7, 8]
        opened.append(Image.new("RGB", (width, height), (shade, shade, shade)))
    ids += [9] * targets
    labels = [IGNORE_INDEX] * (len(ids) - targets) + [9] * targets
    pixels = processor.pixel_inputs(opened) if opened else {}
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "vitw_task_ids": task, **pixels}


def three_samples(processor):
    return [
        sample(processor, 3, 2, [(28, 56, 50)]),
        sample(processor, 9, 0),
        sample(processor, 4, 1, [(56, 56, 100), (28, 28, 150)]),
    ]


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_padded_batch(family, request):
    processor = request.getfixturevalue(family)
    samples = three_samples(processor)
    batch = Collator(processor, 256)(samples)
    size = max(len(one["input_ids"]) for one in samples)
    assert batch["input_ids"].shape == batch["labels"].shape == (3, size)
    for row, one in enumerate(samples):
        length = len(one["input_ids"])
        assert torch.equal(batch["input_ids"][row, :length], one["input_ids"])
        assert torch.equal(batch["labels"][row, :length], one["labels"])
        assert (batch["labels"][row, length:] == IGNORE_INDEX).all()
        assert (batch["input_ids"][row, length:] == processor.tokenizer.pad_token_id).all()
    assert batch["vitw_task_ids"].tolist() == [2, 0, 1]
    assert torch.equal(batch["pixel_values"], torch.cat([samples[0]["pixel_values"], samples[2]["pixel_values"]]))
    extra = {"image_grid_thw", "mm_token_type_ids"} if family == "qwen" else set()
    assert set(batch) == {"input_ids", "labels", "vitw_task_ids", "pixel_values"} | extra
    if family == "qwen":
        assert torch.equal(batch["mm_token_type_ids"] == 1, batch["input_ids"] == processor.image_token_id)
        assert len(batch["image_grid_thw"]) == 3


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("capacity", [1000, 24, 1])
def test_packed_batch(family, capacity, request):
    """Every sample is found whole in some row, with its own positions, task and pixels in the order of the rows."""
    processor = request.getfixturevalue(family)
    samples = three_samples(processor)
    batch = Collator(processor, capacity, packing=True)(samples)
    assert "attention_mask" not in batch
    rows, size = batch["input_ids"].shape
    assert rows == {1000: 1, 1: 3}.get(capacity, rows)
    positions = batch["position_ids"] if batch["position_ids"].dim() == 3 else batch["position_ids"][None]
    assert positions.shape == (4 if family == "qwen" else 1, rows, size)
    found, pixels = [], []
    for row in range(rows):
        begins = [*(positions[0, row] == 0).nonzero().flatten().tolist(), size]
        for start, end in pairwise(begins):
            ids = batch["input_ids"][row, start:end]
            matches = [n for n, one in enumerate(samples) if torch.equal(one["input_ids"], ids)]
            if not matches:  # the padding at the end
                assert end == size
                assert (ids == processor.tokenizer.pad_token_id).all()
                assert (batch["labels"][row, start:end] == IGNORE_INDEX).all()
                assert (positions[:, row, start:end] == torch.arange(end - start)).all()
                continue
            [number] = matches
            one = samples[number]
            assert torch.equal(batch["labels"][row, start:end], one["labels"])
            assert batch["labels"][row, start] == IGNORE_INDEX
            assert (batch["vitw_task_ids"][row, start:end] == one["vitw_task_ids"]).all()
            expected = processor.position_ids(one["input_ids"], one.get("image_grid_thw"))
            assert torch.equal(positions[:, row, start:end], expected)
            found.append(number)
            pixels += [one["pixel_values"]] if "pixel_values" in one else []
    assert sorted(found) == [0, 1, 2]
    assert torch.equal(batch["pixel_values"], torch.cat(pixels))
    if capacity == 24:
        assert size <= 24
        assert rows == 2


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("packing", [False, True])
def test_batch_without_images_gets_a_blank_one(family, packing, request):
    processor = request.getfixturevalue(family)
    samples = [sample(processor, 5, 1), sample(processor, 3, 2)]
    with_image = Collator(processor, 8, packing)([sample(processor, 5, 1, [(28, 28, 9)])])
    batch = Collator(processor, 8, packing)(samples)
    assert batch.keys() == with_image.keys()
    is_image = batch["input_ids"] == processor.image_token_id
    assert is_image.any(dim=1).sum() == 1
    assert int(is_image.sum()) == (IMAGE_TOKENS if family == "llava" else 1)
    assert torch.equal(batch["pixel_values"], processor.pixel_inputs([processor.blank_image()])["pixel_values"])
    assert (batch["labels"] != IGNORE_INDEX).sum() == 4
    row = int(is_image.any(dim=1).nonzero())
    assert (batch["labels"][row][is_image[row]] == IGNORE_INDEX).all()
    if not packing:
        assert batch["vitw_task_ids"].tolist() == [1, 2, 0]
        assert (batch["labels"][2] == IGNORE_INDEX).all()
    assert len(samples) == 2


def test_blank_only_where_there_is_none(llava):
    batch = Collator(llava, 64)([sample(llava, 3, 0), sample(llava, 3, 0, [(28, 28, 1)])])
    assert batch["input_ids"].shape[0] == 2
    assert batch["pixel_values"].shape[0] == 1


@pytest.mark.parametrize("packing", [False, True])
def test_a_first_token_is_never_a_target(llava, packing):
    samples = [sample(llava, 3, 0), sample(llava, 5, 1)]
    for one in samples:
        one["labels"] = one["input_ids"].clone()
    batch = Collator(llava, 64, packing)(samples)
    total = sum(len(one["input_ids"]) for one in samples)
    assert (batch["labels"] != IGNORE_INDEX).sum() == total - 2
    assert all(one["labels"][0] == one["input_ids"][0] for one in samples)  # the callers' samples stay as they are


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), capacity=st.integers(10, 100))
def test_packs_hold_everything_once_and_are_not_wasteful(lengths, capacity):
    packs = first_fit_decreasing(lengths, capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    fills = [sum(lengths[i] for i in pack) for pack in packs]
    assert all(fill <= capacity or len(pack) == 1 for fill, pack in zip(fills, packs, strict=True))
    # first fit: no two packs could have been one
    assert sum(2 * fill <= capacity for fill in fills) <= 1


def test_tokenizer_without_any_padding_token(llava):
    class Bare:
        pad_token_id = None
        eos_token_id = None

    class Processor:
        tokenizer = Bare()

    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        Collator(Processor(), 8)
