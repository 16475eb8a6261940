"""Images of a data set: where they are, how large they are, and reading them.

An image counts as part of the data only when its real path, links followed, lies inside the image folder.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from llava.data.errors import BadSampleError

MAX_PIXELS = 89_478_485
"""Larger images are refused: Pillow's own limit against decompression bombs (a quarter of a GiB of RGB)."""

_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError)
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"


class ImageFolder:
    """Images under one folder, addressed by relative path."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        self._root = os.path.realpath(self.folder)

    def locate(self, path: str) -> str:
        """The real path of `path`; raises BadSampleError when it is missing or outside the folder."""
        full = os.path.join(self.folder, path)
        parent, name = os.path.split(full)
        if not path or "\0" in path or name in ("", ".", ".."):
            raise BadSampleError("bad_image_field", f"{path!r} names no file")
        real = os.path.join(_real_folder(parent), name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if os.path.commonpath([self._root, real]) != self._root:
            raise BadSampleError("image_outside_folder", f"{path} leads to {real}, outside {self._root}")
        if not os.path.isfile(real):
            raise BadSampleError("missing_image", f"there is no file {full}")
        return real

    def size(self, path: str) -> tuple[int, int]:
        """Height and width in pixels, from the file's header; a file that looks cut off is read whole to make sure."""
        return _size(self.locate(path))

    def open(self, path: str) -> Image.Image:
        """The image in RGB, fully read."""
        real = self.locate(path)
        try:
            with Image.open(real) as image:
                return image.convert("RGB")
        except Image.DecompressionBombError as error:
            raise BadSampleError("huge_image", f"{real}: {error}") from error
        except _UNREADABLE as error:
            raise BadSampleError("unreadable_image", f"{real}: {error}") from error


def stamp(folder: str | os.PathLike[str] | None, path: str) -> list[int] | None:
    """Size in bytes and time of change (ns) of an image file, None when it cannot be reached: tells if it changed."""
    try:
        status = os.stat(Path(folder or ".") / path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@lru_cache(maxsize=65536)
def _size(real: str) -> tuple[int, int]:
    try:
        with open(real, "rb") as file, Image.open(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadSampleError("huge_image", f"{real}: {width} × {height} pixels, more than {MAX_PIXELS}")
            if not _ends_properly(file, image.format):
                image.load()
    except Image.DecompressionBombError as error:
        raise BadSampleError("huge_image", f"{real}: {error}") from error
    except BadSampleError:
        raise
    except _UNREADABLE as error:
        raise BadSampleError("unreadable_image", f"{real}: {error}") from error
    return height, width


def _ends_properly(file: BinaryIO, image_format: str | None) -> bool:
    """Whether the file has its format's end mark, without which it may be cut off."""
    mark = {"JPEG": _JPEG_END, "PNG": _PNG_END}.get(image_format or "")
    if mark is None:
        return False
    place = file.tell()
    file.seek(-len(mark), os.SEEK_END)
    tail = file.read()
    file.seek(place)
    return tail == mark
