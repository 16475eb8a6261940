"""Qwen2-VL and Qwen2.5-VL: positions against the models' own, token counts, packing, saving."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava.model.families.qwen2_vl import QwenProcessor
from llava.model.family import family_of
from tests.tiny import QWEN_SPECIALS, tiny_qwen_tokenizer

BOTH = pytest.mark.parametrize("which", ["qwen2_vl", "qwen2_5_vl"])


def load(which, request):
    folder = request.getfixturevalue(which)
    family = family_of(folder)
    return family.load_model(folder).eval(), family.load_processor(folder)


def picture(width, height):
    rng = np.random.default_rng(width + 1000 * height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(processor, *pieces):
    """``(input_ids, pixel inputs)``: strings become words, (width, height) an image."""
    ids, images = [], []
    for piece in pieces:
        if isinstance(piece, str):
            ids += processor.tokenizer(piece, add_special_tokens=False).input_ids
            continue
        images.append(picture(*piece))
        around = processor.tokenizer(processor.image_text, add_special_tokens=False).input_ids
        assert around.count(processor.image_token_id) == 1
        count = processor.num_image_tokens(piece[1], piece[0])
        ids += [t for token in around for t in [token] * (count if token == processor.image_token_id else 1)]
    return torch.tensor(ids), processor.pixel_inputs(images) if images else {}


SAMPLES = [
    ("What is it?", (90, 60), "a red square"),
    ((28, 28), "The", (56, 140), "answer", (200, 30)),
    ("no image here",),
    ((60, 60),),
]


@BOTH
@pytest.mark.parametrize("pieces", SAMPLES)
def test_positions_equal_the_models_own(which, pieces, request):
    model, processor = load(which, request)
    ids, pixels = sample(processor, *pieces)
    grids = pixels.get("image_grid_thw")
    ours = processor.position_ids(ids, grids)
    assert ours.dtype == torch.int64
    assert ours.shape == (4, len(ids))
    assert torch.equal(ours[0], torch.arange(len(ids)))
    types = processor.row_inputs(ids[None])["mm_token_type_ids"]
    theirs, _ = model.model.get_rope_index(ids[None], types, grids)
    assert torch.equal(ours[1:], theirs[:, 0])


def test_positions_refuse_a_wrong_number_of_image_tokens(qwen2_vl):
    processor = family_of(qwen2_vl).load_processor(qwen2_vl)
    ids, pixels = sample(processor, "The", (90, 60), "end")
    first = int((ids == processor.image_token_id).nonzero()[0])
    with pytest.raises(ValueError, match="need more"):
        processor.position_ids(torch.cat([ids[:first], ids[first + 1 :]]), pixels["image_grid_thw"])
    with pytest.raises(ValueError, match="account for"):
        processor.position_ids(ids, None)


@BOTH
def test_packed_samples_equal_each_alone(which, request):
    model, processor = load(which, request)
    model.model.language_model.config.use_cache = False
    rows = [sample(processor, *pieces) for pieces in SAMPLES]
    ids = torch.cat([row[0] for row in rows])[None]
    positions = torch.cat([processor.position_ids(i, p.get("image_grid_thw")) for i, p in rows], dim=1)[:, None]
    pixels = {name: torch.cat([p[name] for _, p in rows if name in p]) for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False, **pixels).logits[0]
        alone = [model(input_ids=i[None], **p, **processor.row_inputs(i[None])).logits[0] for i, p in rows]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def plain_processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return QwenProcessor(
        tiny_qwen_tokenizer(), Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 20000})
    )


@settings(max_examples=30, deadline=None)
@given(width=st.integers(10, 400), height=st.integers(10, 400))
def test_token_count_needs_no_pixels(plain_processor, width, height):
    grid = plain_processor.pixel_inputs([Image.new("RGB", (width, height))])["image_grid_thw"]
    assert plain_processor.num_image_tokens(height, width) == int(grid.prod()) // 4


def test_pixels_of_several_images_lie_end_to_end(plain_processor):
    images = [picture(40, 30), picture(100, 60)]
    both = plain_processor.pixel_inputs(images)
    each = [plain_processor.pixel_inputs([image]) for image in images]
    for name, tensor in both.items():
        assert torch.equal(tensor, torch.cat([one[name] for one in each]))
    assert plain_processor.num_image_tokens(*plain_processor.blank_image().size) == 1


@BOTH
def test_saved_processor_comes_back(which, request, tmp_path):
    _, processor = load(which, request)
    processor.default_template = "chatml_direct"
    processor.save_pretrained(tmp_path)
    again = pickle.loads(pickle.dumps(family_of(request.getfixturevalue(which)).load_processor(tmp_path)))
    assert again.default_template == "chatml_direct"
    text = processor.image_text + "What is it?<|im_end|>"
    assert again.tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    assert again.tokenizer.chat_template == processor.tokenizer.chat_template
    assert again.image_token_id == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    left, right = (one.pixel_inputs([picture(77, 50)]) for one in (processor, again))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_chat_template_from_its_old_place(qwen2_vl, tmp_path):
    """Published folders keep it in chat_template.json."""
    processor = family_of(qwen2_vl).load_processor(qwen2_vl)
    template = processor.tokenizer.chat_template
    processor.tokenizer.chat_template = None
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((qwen2_vl / "config.json").read_bytes())
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert family_of(qwen2_vl).load_processor(tmp_path).tokenizer.chat_template == template


def test_specials_are_one_token_each():
    tokenizer = tiny_qwen_tokenizer()
    for token in QWEN_SPECIALS:
        assert tokenizer(token).input_ids == [tokenizer.convert_tokens_to_ids(token)]
