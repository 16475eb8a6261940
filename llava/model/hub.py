"""A model's folder or file on this machine, wherever it is named: a path, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

_ERRORS = (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError)
_OTHER_FRAMEWORKS = ["*.h5", "*.msgpack", "*.gguf"]


def local_folder(name: str | os.PathLike[str], cache_dir: str | None = None) -> Path:
    """``name`` if it is a folder here, else its snapshot from the hub. Raises ValueError if neither."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name), cache_dir=cache_dir, ignore_patterns=_OTHER_FRAMEWORKS))
    except _ERRORS as error:
        raise ValueError(f"{name} is neither a folder nor a model that can be downloaded: {error}") from error


def local_file(name: str, file: str, cache_dir: str | None = None) -> Path:
    """``name`` if it is a file here, else the ``file`` in the folder or repository ``name``. Raises ValueError."""
    if Path(name).is_file():
        return Path(name)
    if (Path(name) / file).is_file():
        return Path(name) / file
    try:
        return Path(hf_hub_download(name, file, cache_dir=cache_dir))
    except _ERRORS as error:
        raise ValueError(f"no file {file} at {name}: {error}") from error
