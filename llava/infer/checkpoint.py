"""A checkpoint by what its files hold, loaded when it is first needed."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from llava.infer.engine import context_positions
from llava.mm_utils import get_model_name_from_path
from llava.model.family import Processor, family_of
from llava.model.hub import local_folder
from llava.model.load import load_model_and_processor
from llava.model.original.names import is_original, read_config
from llava.model.tokenizer import TOKENIZER_FILES, reading

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "non_lora_trainables.bin", "mm_projector.bin")
_SETTINGS = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template.*",
    "vocab.json",
    "merges.txt",
)
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


class Checkpoint:
    """A saved model, and the base it stands on if it is an adapter or a projector."""

    def __init__(self, path: str, base: str | None, dtype: str, device: str | None) -> None:
        self.path = path
        self.folder = local_folder(path)
        self.base = base
        self.device = torch.device(device or default_device())
        is_adapter = (self.folder / "adapter_config.json").exists()
        saved = {} if is_adapter else read_config(self.folder)
        if dtype == "auto" and self.device.type == "cpu":
            dtype = "float32"  # half precision is slow on a CPU, and saved weights lose nothing in float32
        elif dtype == "auto" and str(saved.get("dtype") or saved.get("torch_dtype")) == "float32":
            dtype = "bfloat16"  # float32 is many times slower on a GPU, and trainings of both kinds share a matrix
        self.dtype: str | torch.dtype = getattr(torch, dtype, dtype)

    @property
    def name(self) -> str:
        """What the checkpoint goes by unless it is named: its folder."""
        return get_model_name_from_path(os.path.abspath(self.path))

    @cached_property
    def identity(self) -> str:
        """A digest of the files that decide what the model answers, the base's included.

        Of weights their names, sizes and evenly spread samples count (4 MiB a file), not their place: a model that
        was moved stays the same, one that was trained further does not.
        """
        digest = hashlib.sha256()
        for folder in [self.folder, *([] if self.base is None else [local_folder(self.base)])]:
            for file in _files(folder, _SETTINGS):
                digest.update(file.name.encode() + file.read_bytes())
            for file in _files(folder, _WEIGHTS):
                digest.update(f"{file.name}:{file.stat().st_size}".encode())
                for sample in _samples(file):
                    digest.update(sample)
        return digest.hexdigest()

    @cached_property
    def tokenizer_reading(self) -> str | None:
        """See `llava.model.tokenizer.reading`; None too where neither folder holds a tokenizer."""
        folders = [self.folder, *([] if self.base is None else [local_folder(self.base)])]
        held = (folder for folder in folders if any((folder / name).is_file() for name in TOKENIZER_FILES))
        folder = next(held, None)
        return None if folder is None else reading(folder)

    @cached_property
    def processor(self) -> Processor:
        """The processor; the model is loaded for it only where the folder holds none of its own."""
        return family_of(self.folder).load_processor(self.folder) if self._holds_its_own else self._loaded[1]

    @cached_property
    def context_length(self) -> int | None:
        """Tokens that the model has positions for, None where it sets no limit."""
        return context_positions(AutoConfig.from_pretrained(self.folder) if self._holds_its_own else self.model.config)

    @cached_property
    def _holds_its_own(self) -> bool:
        """Whether processor and configuration are in the folder, in transformers' layout."""
        return (self.folder / "config.json").exists() and not is_original(read_config(self.folder))

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model on its device."""
        return self._loaded[0]

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Processor]:
        try:
            # Straight to the device: in the memory of the machine, the copies of eight ranks would not fit.
            where = None if self.device.type == "cpu" else {"": self.device}
            model, processor = load_model_and_processor(self.folder, self.base, self.dtype, device_map=where)
        except SafetensorError as error:
            raise ValueError(f"{self.folder}: its weights cannot be read ({error}); copy or train it again") from error
        return model.to(self.device), processor  # type: ignore[return-value, arg-type]


def default_device() -> str:
    """This rank's GPU, else the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _samples(file: Path) -> list[bytes]:
    size = file.stat().st_size
    step = max(_SAMPLE_BYTES, size // _SAMPLES)
    with file.open("rb") as stream:
        samples = []
        for offset in [*range(0, size, step), max(0, size - _SAMPLE_BYTES)]:
            stream.seek(offset)
            samples.append(stream.read(_SAMPLE_BYTES))
    return samples
