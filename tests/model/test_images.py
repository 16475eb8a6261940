"""Image preprocessing against LLaVA-1.5's steps done by hand with Pillow and numpy."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava.model.families.llava import square_image_processor
from llava.model.family import family_of
from llava.model.pixels import SquarePixels

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIDE = 28


def picture(width, height, mode="RGB"):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def padded(image):
    """A square of the longer side in the mean colour (integer part), the picture in its middle."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


SIZES = [(28, 28), (41, 20), (20, 41), (64, 63), (5, 90), (28, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_pad_resize_normalise_by_hand(size):
    image = picture(*size)
    ours = square_image_processor(SIDE)([image], return_tensors="pt")["pixel_values"][0]
    small = np.asarray(padded(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float64) / 255
    by_hand = ((small - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)
    assert ours.dtype == torch.float32
    # one step of 8 bits is 0.015: nothing but rounding in float32 is left
    np.testing.assert_allclose(ours.numpy(), by_hand, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_equals_padding_before_the_clip_processor(size):
    """LLaVA-1.5 pads with Pillow and hands the square to CLIP's own processor."""
    clip = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    image = picture(*size)
    theirs = clip([padded(image)], return_tensors="pt")["pixel_values"]
    assert torch.equal(square_image_processor(SIDE)([image], return_tensors="pt")["pixel_values"], theirs)


def test_without_padding_the_middle_is_cropped():
    image = picture(60, 30)
    ours = square_image_processor(SIDE, pad=False)([image], return_tensors="pt")["pixel_values"]
    clip = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    assert torch.equal(ours, clip([image], return_tensors="pt")["pixel_values"])
    assert not torch.equal(ours, square_image_processor(SIDE)([image], return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_modes_become_rgb(mode):
    image = picture(30, 20, mode)
    processor = square_image_processor(SIDE)
    ours = processor([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, processor([image.convert("RGB")], return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(("stated", "padded_to_square"), [(None, True), (True, True), (False, False)])
def test_checkpoints_that_do_not_say_are_padded(hub_folder, tmp_path, stated, padded_to_square):
    """Early converted LLaVA-1.5 checkpoints hold CLIP's processor, which knows no padding."""
    for file in hub_folder.iterdir():
        if file.suffix == ".json" and file.name != "processor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    del settings["do_pad"]
    settings |= {"image_processor_type": "CLIPImageProcessor"} if stated is None else {"do_pad": stated}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = picture(50, 20)
    ours = family_of(tmp_path).load_processor(tmp_path).pixel_inputs([image])["pixel_values"]
    wanted = square_image_processor(SIDE, pad=padded_to_square)([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, wanted)


def test_processor_counts_and_batches(built):
    processor = built[1]
    batch = processor.pixel_inputs([picture(30, 20), processor.blank_image()])["pixel_values"]
    assert batch.shape == (2, 3, SIDE, SIDE)
    assert torch.equal(batch[0], processor.pixel_inputs([picture(30, 20)])["pixel_values"][0])
    assert processor.num_image_tokens(20, 30) == 4 == built[0].config.image_seq_length


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("side", [28, 336])
def test_pixels_are_those_of_transformers_to_the_bit(pad, side):
    """Upright, wide, square, of the final size, thin and tiny images."""
    stock = square_image_processor(side, pad)
    random = np.random.default_rng(0)
    for height, width in ((20, 30), (336, 336), (480, 640), (641, 427), (33, 500), (28, 28), (1, 7), (335, 337)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        pixels = SquarePixels(stock)([image])
        expected = stock([image], return_tensors="pt")["pixel_values"]
        assert pixels.dtype == expected.dtype
        assert torch.equal(pixels, expected)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("do_center_crop", False), ("do_rescale", False), ("size", {"height": 30, "width": 40}), ("crop", 64)],
)
def test_unusual_settings_are_transformers_own_work(setting, value):
    more = {"crop_size": {"height": value, "width": value}} if setting == "crop" else {setting: value}
    stock = LlavaImageProcessorPil(**{"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, **more})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert torch.equal(SquarePixels(stock)([image]), stock([image], return_tensors="pt")["pixel_values"])


def test_usual_images_do_not_pass_through_transformers(monkeypatch):
    stock = square_image_processor(28)
    monkeypatch.setattr(type(stock), "__call__", lambda *_, **__: pytest.fail("not by the table"))
    assert SquarePixels(stock)([Image.new("RGB", (30, 20))]).shape == (1, 3, 28, 28)
