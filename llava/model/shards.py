"""Reading and writing weights in shards, one shard in memory at a time, whole output folders or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from eval.files import move_into_place

SHARD_BYTES = 4 * 2**30
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def weight_files(folder: Path) -> list[Path]:
    """The model weight files of a folder, by its index or its single file. Raises ValueError if a file is absent."""
    for single in _SINGLE_FILES:
        index = folder / f"{single}.index.json"
        if index.exists():
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            absent = [file.name for file in files if not file.exists()]
            if absent:
                raise ValueError(f"{folder}: {index.name} names {absent[0]}, which is not there")
            return files
        if (folder / single).exists():
            return [folder / single]
    return []


def read_shard(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """``(name, tensor)`` of one ``.safetensors`` or ``.bin`` file, each tensor read (or mapped) when asked for."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (not a dict)
                    yield name, handle.get_tensor(name)
        else:
            yield from _load_bin(file).items()
    except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: not a readable weight file ({reason})") from error


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    with file.open("rb") as head:
        zipped = head.read(2) == b"PK"  # torch's format since 1.6; older files cannot be mapped
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)


class ShardWriter:
    """Collects tensors and writes a safetensors shard whenever ``shard_bytes`` are full."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._held: dict[str, torch.Tensor] = {}
        self._held_bytes = self._total = 0
        self._shards: list[list[str]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; ValueError if the name was given before."""
        if name in self.shapes:
            raise ValueError(f"parameter {name} is there twice")
        if self._held and self._held_bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self.shapes[name] = tuple(tensor.shape)
        self._held[name] = tensor
        self._held_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, give the shards their final names and write the index."""
        self._flush()
        if len(self._shards) == 1:
            move_into_place(self._part(0), self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            move_into_place(self._part(number), self.folder / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number}.safetensors"

    def _flush(self) -> None:
        if not self._held:
            return
        tensors, storages = {}, set()
        for name, tensor in self._held.items():
            shared = tensor.untyped_storage().data_ptr() in storages  # tied weights are written twice
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
            storages.add(tensors[name].untyped_storage().data_ptr())
        save_file(tensors, self._part(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(tensors))
        self._total += self._held_bytes
        self._held, self._held_bytes = {}, 0


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its name when the block ends well, and goes when it does not.

    Raises ValueError if ``target`` is a file or a folder that holds anything.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target}: already there; name a folder that is new or empty")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        move_into_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
