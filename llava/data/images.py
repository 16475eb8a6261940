"""Images of a data set: where they are, how large they are, and reading them.

An image counts as part of the data only when its real path, links followed, lies inside the image folder. What is read
is what a viewer shows: turned as its EXIF orientation says, the first frame, in 8 bits of red, green and blue.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from stat import S_ISLNK, S_ISREG

import numpy as np
from PIL import ExifTags, Image, ImageOps

from llava.data.errors import BadSampleError

MAX_PIXELS = 89_478_485
"""Larger images are refused: Pillow's own limit against decompression bombs (a quarter of a GiB of RGB)."""

# What Pillow's decoders raise on damaged files; each of them means the same to us.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_TAIL = {"JPEG": len(_JPEG_END), "PNG": 1 << 16}  # bytes
# Where a PNG may say its orientation; some programs write it behind the pixels, where a header's reader does not get.
_PNG_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}
_PNG_LATE_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_LAID_ON_ITS_SIDE = (5, 6, 7, 8)
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class ImageFolder:
    """Images under one folder, addressed by relative path."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        self._root = os.path.realpath(self.folder)
        self._inside = os.path.join(self._root, "")  # with a separator at its end

    def locate(self, path: str) -> str:
        """The real path of `path`; raises BadSampleError when it is missing or outside the folder."""
        return self._found(path)[0]

    def size(self, path: str) -> tuple[int, int]:
        """Height and width in pixels, from the file's header; a file that looks cut off is read whole to make sure."""
        real, status = self._found(path)
        return _size(real, status.st_mtime_ns)

    def _found(self, path: str) -> tuple[str, os.stat_result]:
        """The real path, and the state of the file there."""
        full = os.path.join(self.folder, path)
        parent, name = os.path.split(full)
        if not path or "\0" in path or name in ("", ".", ".."):
            raise BadSampleError("bad_image_field", f"{path!r} names no file")
        real = os.path.join(_real_folder(parent), name)
        status = _lstat(real)
        if status is not None and S_ISLNK(status.st_mode):
            real = os.path.realpath(real)
            status = _lstat(real)
        if not real.startswith(self._inside):
            raise BadSampleError("image_outside_folder", f"{path} leads to {real}, outside {self._root}")
        if status is None or not S_ISREG(status.st_mode):
            raise BadSampleError("missing_image", f"there is no file {full}")
        return real, status

    def open(self, path: str) -> Image.Image:
        """The image as `to_rgb` gives it, fully read."""
        with _opened(self.locate(path)) as image:
            return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A new image in RGB, turned upright; of 16 bits the upper eight are kept, as Pillow does for 16-bit colour.

    Raises ValueError for pixels of 32 bits and in floating point, which have no agreed scale.
    """
    image.load()
    turned = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    if turned.mode == "F":
        raise ValueError("its pixels are in floating point, which has no agreed scale; save it with 8 or 16 bits")
    if turned.mode in _DEEP:
        turned = _upper_bits(turned, turned.mode != "I" or image.format == "PPM")
    return turned.convert("RGB")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of `image` as `to_rgb` gives it."""
    # Pillow gives a TIFF's size upright before it has turned the pixels.
    sideways = image.format != "TIFF" and _orientation(image) in _LAID_ON_ITS_SIDE
    return (image.width, image.height) if sideways else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where it says none, or nothing that can be read."""
    try:
        stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return stated if stated in range(1, 9) else 1


def _upper_bits(image: Image.Image, sixteen: bool) -> Image.Image:
    """8 bits of an image of whole numbers; `sixteen`: it has 16 bits for sure, else small numbers are 8 bits."""
    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 0xFFFF:
        raise ValueError(f"its pixels go from {low} to {high}, which has no agreed scale; save it with 8 or 16 bits")
    return Image.fromarray((pixels >> 8 if sixteen or high > 0xFF else pixels).astype(np.uint8))


@contextmanager
def _opened(real: str) -> Iterator[Image.Image]:
    """The image file, its header read; BadSampleError for one that is too large or damaged, here or in the block."""
    try:
        # By its handle: of files by name, Pillow maps some into memory, and scrambles a TIFF that lies on its side.
        with open(real, "rb") as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadSampleError(
                    "huge_image", f"{real}: {image.width} × {image.height} pixels, more than {MAX_PIXELS}"
                )
            yield image
    except Image.DecompressionBombError as error:
        raise BadSampleError("huge_image", f"{real}: {error}") from error
    except BadSampleError:
        raise
    except _DAMAGE as error:
        raise BadSampleError("unreadable_image", f"{real}: {error}") from error


def stamp(folder: str | os.PathLike[str] | None, path: str) -> list[int] | None:
    """Size in bytes and time of change (ns) of an image file, None when it cannot be reached: tells if it changed."""
    try:
        status = os.stat(os.path.join(folder or ".", path))
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@lru_cache(maxsize=65536)
def _size(real: str, changed: int) -> tuple[int, int]:
    with _opened(real) as image:
        tail = _read_tail(image) if image.format in ("JPEG", "PNG") else b""
        whole = tail.endswith(_PNG_END if image.format == "PNG" else _JPEG_END)
        if not whole:  # it may be cut off
            image.load()
        if image.mode == "F":
            to_rgb(image)  # raises
        if image.format == "PNG" and not _PNG_EXIF & image.info.keys() and not any(m in tail for m in _PNG_LATE_EXIF):
            return image.height, image.width  # Pillow would read the whole file to look for an orientation
        return upright_size(image)


def _read_tail(image: Image.Image) -> bytes:
    """The last bytes of the file of an image whose header is read."""
    file = image.fp  # type: ignore[attr-defined]
    offset = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL[str(image.format)]))
    tail: bytes = file.read()
    file.seek(offset)
    return tail
