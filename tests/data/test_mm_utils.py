"""The helpers LLaVA users import."""

import base64
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand2square,
    get_model_name_from_path,
    load_image_from_base64,
    process_images,
    tokenizer_image_token,
)
from llava.model.families.llava import square_image_processor
from tests.data import llava_oracle
from tests.data.world import llama_tokenizer
from tests.tiny import sentencepiece_file


@pytest.fixture(scope="module", params=[True, False])
def tokenizer(request, tmp_path_factory):
    return llama_tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param)


def test_constants():
    assert (IGNORE_INDEX, IMAGE_TOKEN_INDEX, DEFAULT_IMAGE_TOKEN) == (-100, -200, "<image>")


@pytest.mark.parametrize(
    "prompt", ["<image>", "a <image>\nb<image> c", "no image", "<image><image>", "", "a<image>  b.  C</s> d"]
)
def test_tokenizer_image_token(tokenizer, prompt):
    slow = llava_oracle.SlowLlamaTokenizer(sentencepiece_file(), tokenizer.legacy)
    expected = llava_oracle.ids_with_images(prompt, slow)
    assert tokenizer_image_token(prompt, tokenizer) == expected
    tensor = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
    assert tensor.dtype == torch.long
    assert tensor.tolist() == expected
    with pytest.raises(ValueError, match="return_tensors"):
        tokenizer_image_token(prompt, tokenizer, return_tensors="np")


def test_a_llava_users_script(tokenizer):
    """The lines of LLaVA's own quick start."""
    conv = conv_templates["vicuna_v1"].copy()
    conv.append_message(conv.roles[0], DEFAULT_IMAGE_TOKEN + "\nWhat is this?")
    conv.append_message(conv.roles[1], None)
    prompt = conv.get_prompt()
    assert prompt.endswith("USER: <image>\nWhat is this? ASSISTANT:")
    assert conv.sep_style != SeparatorStyle.LLAMA_2
    assert conv.sep2 == "</s>"
    ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
    assert (ids == IMAGE_TOKEN_INDEX).sum() == 1


@pytest.mark.parametrize(("height", "width"), [(2, 5), (5, 2), (4, 4), (3, 6)])
def test_expand2square(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = np.asarray(expand2square(Image.fromarray(pixels), (1, 2, 3)))
    side = max(height, width)
    expected = np.tile(np.array([1, 2, 3], np.uint8), (side, side, 1))
    top, left = (side - height) // 2, (side - width) // 2
    expected[top : top + height, left : left + width] = pixels
    assert np.array_equal(square, expected)


def test_process_images():
    processor = square_image_processor(28, pad=False)
    images = [Image.new("RGB", (30, 20), (200, 10, 10)), Image.new("RGB", (9, 9), (1, 200, 3))]
    padded = process_images(images, processor, SimpleNamespace(image_aspect_ratio="pad"))
    assert padded.shape == (2, 3, 28, 28)
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    grey = (np.floor(mean * 255) / 255 - mean) / std  # the padding's colour after normalisation
    assert np.allclose(padded[0, :, 0, 0].numpy(), grey, atol=1e-5)
    assert np.allclose(padded[0, :, 14, 14].numpy(), (np.array([200, 10, 10]) / 255 - mean) / std, atol=1e-5)
    cropped = process_images(images, processor, SimpleNamespace())
    assert np.allclose(cropped[0, :, 0, 0].numpy(), (np.array([200, 10, 10]) / 255 - mean) / std, atol=1e-5)
    with pytest.raises(ValueError, match="anyres"):
        process_images(images, processor, SimpleNamespace(image_aspect_ratio="anyres"))


def test_load_image_from_base64():
    buffer = BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(buffer, "PNG")
    image = load_image_from_base64(base64.b64encode(buffer.getvalue()))
    assert image.size == (3, 2)
    assert image.getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("/models/llava-v1.5-7b/", "llava-v1.5-7b"),
        ("runs/mine/checkpoint-500", "mine_checkpoint-500"),
        ("checkpoint-500", "checkpoint-500"),
    ],
)
def test_get_model_name_from_path(path, name):
    assert get_model_name_from_path(path) == name


def test_keywords_stopping(tokenizer):
    prompt = tokenizer("USER: stop? ASSISTANT:", return_tensors="pt").input_ids.repeat(2, 1)
    criteria = KeywordsStoppingCriteria(["</s>", "stop"], tokenizer, prompt)

    def after(*texts):
        rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        size = min(map(len, rows))
        new = torch.tensor([row[-size:] for row in rows])
        return criteria(torch.cat([prompt, new], dim=1), None)

    assert after("go on and on", "yes, go on and on").tolist() == [False, False]
    assert after("one two stop", "one two three").tolist() == [True, False]
    assert after("one two three</s>", "one two unstoppable").tolist() == [True, True]
