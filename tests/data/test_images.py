"""What is seen of an image file: against viewers' rules done by hand, and against Pillow for ordinary files."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from llava.data.dataset import InstructionDataset
from llava.data.errors import BadSampleError, DataError
from llava.data.images import ImageFolder
from llava.data.store import SampleStore
from llava.infer.prompts import image_size, open_image
from llava.model.families.llava import square_image_processor
from tests.data.world import index, llava_processor, record, save_image

ORIENTATION = 0x0112
# How the pixels of an upright picture lie in a file of each orientation (EXIF: where row 0 and column 0 are seen).
STORED = {
    1: lambda seen: seen,
    2: np.fliplr,
    3: lambda seen: np.rot90(seen, 2),
    4: np.flipud,
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: np.rot90(seen.swapaxes(0, 1), 2),
    8: lambda seen: np.rot90(seen, -1),
}
SEEN = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return llava_processor(tmp_path_factory.mktemp("tokenizer"))


def saved(path, pixels, orientation=None, **options):
    """Save `pixels`, with an orientation where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **options)
    return path


def chunks(content):
    """The chunks of a PNG, each whole."""
    place, found = 8, []
    while place < len(content):
        end = place + 12 + struct.unpack(">I", content[place : place + 4])[0]
        found.append(content[place:end])
        place = end
    return found


def exif_behind_pixels(path):
    """Move a PNG's eXIf chunk to the end, where exiftool writes it."""
    content = path.read_bytes()
    parts = sorted(chunks(content)[:-1], key=lambda chunk: chunk[4:8] == b"eXIf")
    assert parts[-1][4:8] == b"eXIf"
    path.write_bytes(content[:8] + b"".join(parts) + chunks(content)[-1])


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["png", "late.png", "webp", "tiff", "jpg"])
def test_images_are_seen_upright(tmp_path, orientation, kind):
    path = tmp_path / f"a.{kind}"
    saved(path, STORED[orientation](SEEN), orientation, **({"lossless": True} if kind == "webp" else {}))
    if kind == "late.png":
        exif_behind_pixels(path)
    folder = ImageFolder(tmp_path)
    assert folder.size(path.name) == image_size(path) == (20, 30)
    pixels = np.asarray(folder.open(path.name))
    if kind == "jpg":  # lossy: what is stored, turned by hand
        with Image.open(path) as image:
            back = {6: 8, 8: 6}.get(orientation, orientation)  # the others undo themselves
            assert np.array_equal(pixels, STORED[back](np.asarray(image)))
    else:
        assert np.array_equal(pixels, SEEN)
    assert np.array_equal(np.asarray(open_image(path)), pixels)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(open_image(image)), pixels)


def test_training_and_index_see_images_upright(tmp_path, llava):
    saved(tmp_path / "images" / "phone.png", STORED[6](SEEN), 6)
    folder = index(tmp_path, [record("<image>\nx", "y", image="phone.png")], llava)
    assert SampleStore(folder)[0].image_sizes.tolist() == [20, 30]
    item = InstructionDataset(folder, tmp_path / "images", llava)[0]
    assert torch.equal(item["pixel_values"], llava.pixel_inputs([Image.fromarray(SEEN)])["pixel_values"])


def test_an_orientation_that_cannot_be_read_is_none(tmp_path):
    Image.fromarray(SEEN).save(tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0no such thing")
    saved(tmp_path / "b.png", SEEN, 77)
    for name in ("a.webp", "b.png"):
        assert ImageFolder(tmp_path).size(name) == (20, 30)
        assert np.array_equal(np.asarray(ImageFolder(tmp_path).open(name)), SEEN)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
def test_ordinary_images_are_as_pillow_reads_them(tmp_path, mode, kind):
    path = tmp_path / f"a.{kind}"
    try:
        Image.fromarray(SEEN).convert(mode).save(path)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    with Image.open(path) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(ImageFolder(tmp_path).open(path.name)), wanted)
    assert ImageFolder(tmp_path).size(path.name) == (20, 30)


def test_transparency_and_animation_as_documented(tmp_path):
    """A hidden colour is seen, and the first frame."""
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(ImageFolder(tmp_path).open("clear.png")).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "white")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(ImageFolder(tmp_path).open("moves.gif"))[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["png", "little.tiff", "big.tiff", "pgm"])
def test_16_bits_are_scaled(tmp_path, kind, orientation):
    deep = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    path = tmp_path / f"deep.{kind}"
    if kind == "pgm":
        path.write_bytes(b"P5 30 20 65535\n" + deep.astype(">u2").tobytes())
        orientation = 1
    elif kind == "big.tiff":
        orientation = 1
        Image.frombytes("I;16B", (30, 20), deep.astype(">u2").tobytes()).save(path)
    else:
        saved(path, STORED[orientation](deep), orientation)
    assert ImageFolder(tmp_path).size(path.name) == (20, 30)
    pixels = np.asarray(ImageFolder(tmp_path).open(path.name))
    assert np.array_equal(pixels, np.repeat((deep // 256).astype(np.uint8)[:, :, None], 3, axis=2))
    assert pixels.mean() == pytest.approx(127.5, abs=1)


def test_16_bits_of_grey_and_of_colour_are_scaled_alike(tmp_path):
    """Pillow reads 16-bit colour by itself."""
    deep = np.random.default_rng(1).integers(0, 65536, (5, 7), dtype=np.uint16)
    saved(tmp_path / "grey.png", deep)
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, axis=1).astype(">u2").tobytes() for row in deep)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    (tmp_path / "colour.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    grey, colour = (np.asarray(ImageFolder(tmp_path).open(f"{name}.png")) for name in ("grey", "colour"))
    assert np.array_equal(grey, colour)


def test_whole_numbers_of_32_bits(tmp_path):
    """Small ones are 8 bits, as ever; those beyond 16 bits have no agreed scale."""
    small = np.arange(256, dtype=np.int32).reshape(16, 16)
    saved(tmp_path / "small.tiff", small)
    assert np.array_equal(np.asarray(ImageFolder(tmp_path).open("small.tiff"))[:, :, 0], small)
    saved(tmp_path / "middle.tiff", small * 257)
    assert np.array_equal(np.asarray(ImageFolder(tmp_path).open("middle.tiff"))[:, :, 0], small)
    saved(tmp_path / "large.tiff", small * 1000)
    with pytest.raises(BadSampleError, match=r"large.tiff: its pixels go from 0 to 255000, which has no agreed scale"):
        ImageFolder(tmp_path).open("large.tiff")


def test_floating_point_is_refused_at_once(tmp_path, llava):
    saved(tmp_path / "images" / "float.tiff", np.ones((4, 4), np.float32))
    with pytest.raises(DataError, match=r"record bad .*unreadable_image: .*float.tiff: .* in floating point"):
        index(tmp_path, [record("<image>\nx", "y", record_id="bad", image="float.tiff")], llava)


@pytest.mark.parametrize("pad", [True, False])
def test_a_strip_that_would_be_huge_as_a_square_is_named(tmp_path, llava, pad):
    processor = llava_processor(tmp_path / "tokenizer") if not pad else llava
    if not pad:
        processor.image_processor = square_image_processor(28, pad=False)
    (tmp_path / "images").mkdir()
    Image.new("1", (150_000, 1)).save(tmp_path / "images" / "strip.png")
    save_image(tmp_path / "images" / "long.png", 10, 9000)
    index(tmp_path, [record("<image>\nx", "y", image="long.png")], processor)
    with pytest.raises(
        DataError, match=r"record bad .*unfit_image: strip.png, 150000 × 1 pixels: .*more than 89,478,485"
    ):
        index(tmp_path, [record("<image>\nx", "y", record_id="bad", image="strip.png")], processor)


def broken_data(path):
    """A PNG whose header and end are right and whose pixels are not."""
    stream = io.BytesIO()
    Image.fromarray(SEEN).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    place = content.index(b"IDAT") + 40
    content[place : place + 40] = bytes(40)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_good_header_with_broken_data_is_named_when_read(tmp_path, llava):
    broken_data(tmp_path / "images" / "rotten.png")
    folder = index(tmp_path, [record("<image>\nx", "y", record_id="bad", image="rotten.png")], llava)
    with pytest.raises(DataError, match=r"record bad: unreadable_image: .*rotten.png"):
        InstructionDataset(folder, tmp_path / "images", llava)[0]


def test_damage_of_any_kind_is_one_error(tmp_path):
    """Random bytes in files of many formats: read, or refused by name."""
    rng = np.random.default_rng(2)
    for kind in ("png", "jpg", "gif", "webp", "tiff", "bmp", "ppm", "ico", "tga"):
        whole = saved(tmp_path / f"whole.{kind}", SEEN).read_bytes()
        for number in range(60):
            content = bytearray(whole)
            for place in rng.integers(0, min(len(content), 200 if number % 2 else len(content)), 4):
                content[place] = rng.integers(256)
            path = tmp_path / f"{number}.{kind}"
            path.write_bytes(content)
            told = ""
            try:
                ImageFolder(tmp_path).size(path.name)
                ImageFolder(tmp_path).open(path.name)
            except BadSampleError as error:
                told = f"{error.reason}: {error}"
            assert re.match(rf"$|(unreadable|huge)_image: .*{number}\.{kind}: ", told)
