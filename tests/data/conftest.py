"""A processor, and a folder of images of which many are not as they should be."""

import pytest
from PIL import Image

from tests.data.world import llava_processor, save_image


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return llava_processor(tmp_path_factory.mktemp("tokenizer"))


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
