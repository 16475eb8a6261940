"""Images inside records: as base64, as bytes, or as the struct that Hugging Face's parquet files hold."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from PIL import Image

_FORMATS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}


def image_bytes(content: Any) -> bytes:
    """An image file's content; empty where `content` holds none."""
    if isinstance(content, dict):
        content = content.get("bytes")
    if isinstance(content, bytes):
        return content
    encoded = str(content or "")
    try:
        return base64.b64decode(encoded.partition(",")[2] if encoded.startswith("data:") else encoded)
    except (binascii.Error, ValueError):
        return b""


def image_ending(raw: bytes) -> str | None:
    """The ending of the image's format, by its content; None where it is no image that we know."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            return _FORMATS.get(image.format or "")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
