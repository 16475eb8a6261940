"""Checkpoints that are whole: marked with what they hold, checked before use, loaded to the last weight.

A checkpoint's file `complete` is written last, after everything else has reached the disk. It lists the files and their
sizes, so that one that is lost or cut off later is noticed; of a folder that is read once and for all, hashes too.
Checkpoints of earlier versions have it empty; of those it is known what has to be there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from eval.files import sha256, sync, write_text

logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""Written into a folder after everything else, when every rank has finished: {"files": {name: bytes}}, and where asked
for {"hashes": {name: digest}}."""
WEIGHTER_FILE = "weighter.json"
DAMAGED = "damaged-"
"""What the name of a checkpoint folder that is put aside begins with."""
ADVICE = "The training has diverged and is stopped; mostly the learning rate (--learning_rate) is too high."
_MARKER = re.compile(rf"{COMPLETE}|\.{COMPLETE}\..*tmp")  # or what a killed run left of it
_ALWAYS = ("trainer_state.json", WEIGHTER_FILE)
_MODEL = ("config.json", "adapter_config.json")


class DivergedError(RuntimeError):
    """A loss, a gradient or the weights are no longer finite; training on would be for nothing."""


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest `checkpoint-STEP` folder of `output_dir` that is whole and can be gone on from, or None.

    One that was written to its end but is not whole any more is renamed to `damaged-checkpoint-STEP`, with a line in
    the log. To be called on one rank.
    """
    steps = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
            steps[int(match[1])] = folder
    for step in sorted(steps, reverse=True):
        folder = steps[step]
        if not (folder / COMPLETE).is_file():
            logger.warning("%s was not written to its end and is not used", folder)
        elif fault := find_damage(folder):
            logger.warning("%s is damaged (%s): put aside as %s", folder, fault, _put_aside(folder).name)
        elif not _has_optimizer(folder):
            logger.warning("%s holds no state of the optimizer (--save_only_model) and is not used", folder)
        else:
            return str(folder)
    return None


def mark_complete(folder: Path, hashed: bool = False) -> None:
    """Bring all files of `folder` to the disk, then write its `complete`; `hashed` adds the SHA-256 of each."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(_files(folder))}
    content = {"files": {name: path.stat().st_size for name, path in files.items()}}
    hashes = {"hashes": {name: sha256(path) for name, path in files.items()}} if hashed else {}
    sync_tree(folder)
    write_text(folder / COMPLETE, json.dumps(content | hashes, indent=1) + "\n")


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a folder that has been marked complete, None if it is whole.

    Sizes of all files, and whether each can be opened: JSON, headers of weights, directories of zip archives (what
    torch writes). Bytes that changed within a file of the right size are looked for only where `complete` has hashes.
    """
    try:
        marker = (folder / COMPLETE).read_text(encoding="utf-8")
        content = json.loads(marker) if marker.strip() else {"files": _expected_of_old(folder)}
        hashes = content.get("hashes", {})
        for name, size in content["files"].items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if size is not None and file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if not _opens(file):
                return f"{name} cannot be read"
            if name in hashes and sha256(file) != hashes[name]:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return f"{COMPLETE} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{COMPLETE} cannot be read"
    return None


def nonfinite_weights(folder: str | Path) -> list[str]:
    """Return the names of the tensors in `folder`'s .safetensors files that hold NaN or an infinity."""
    names = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (no dictionary)
                tensor = weights.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    names.append(name)
    return names


def describe_nonfinite(folder: str | Path, step: int) -> str | None:
    """Return what is to be said where the weights of `step` saved in `folder` are not finite, None where all are."""
    names = nonfinite_weights(folder)
    some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"step {step}: {len(names)} saved tensors hold NaN or infinities ({some}). {ADVICE}" if names else None


def sync_tree(folder: Path) -> None:
    """Bring a folder with all that lies below it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not _MARKER.fullmatch(path.name))


def _expected_of_old(folder: Path) -> dict[str, int | None]:
    """What a checkpoint with an empty `complete` must hold, sizes unknown."""
    held = {path.relative_to(folder).as_posix() for path in _files(folder)}
    model = [name for name in _MODEL if name in held] or _MODEL[:1]
    if _has_partitions(folder):
        return dict.fromkeys([*_ALWAYS, *model, *sorted(held)])
    states = ["optimizer.pt", "scheduler.pt"]
    weights = [name for name in held if re.search(r"model.*\.(safetensors|bin)$", name)] or ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weights += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return dict.fromkeys([*_ALWAYS, *model, *states, *weights, *sorted(held)])


def _has_optimizer(folder: Path) -> bool:
    return _has_partitions(folder) or all((folder / name).is_file() for name in ("optimizer.pt", "scheduler.pt"))


def _has_partitions(folder: Path) -> bool:
    """Whether DeepSpeed (`global_step*`) or FSDP (`optimizer*/`) has left the optimizer's state in folders."""
    return any(path.is_dir() for pattern in ("global_step*", "optimizer*") for path in folder.glob(pattern))


def _opens(file: Path) -> bool:
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):  # checks the header against the file's size
                pass
        elif file.suffix in (".pt", ".pth"):
            return zipfile.is_zipfile(file)
    except (ValueError, OSError, SafetensorError):
        return False
    return True


def _put_aside(folder: Path) -> Path:
    target, number = folder.with_name(DAMAGED + folder.name), 2
    while target.exists():
        target, number = folder.with_name(f"{DAMAGED}{folder.name}-{number}"), number + 1
    folder.rename(target)
    return target


def load_whole(model_class: type[PreTrainedModel], folder: str | os.PathLike[str], **options: Any) -> PreTrainedModel:
    """`from_pretrained`, which gives weights that `folder` lacks random values and only warns, made to fail then.

    Raises:
        ValueError: the checkpoint lacks weights of the model, or has them in another shape.
    """
    loaded: Any = model_class.from_pretrained(folder, output_loading_info=True, **options)
    model, info = loaded
    missing = sorted({str(key) for key in info["missing_keys"]} | {str(key) for key in info["mismatched_keys"]})
    if missing:
        some = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise ValueError(f"{folder} is not a whole {model_class.__name__}: {len(missing)} weights do not fit ({some})")
    return model


def load_full_model(
    model: nn.Module, checkpoint: str, load_model: Callable[[str], PreTrainedModel] | None = None
) -> None:
    """Load every weight of `checkpoint` into `model`, in the model's own names and dtypes.

    Args:
        load_model: folder → model; None takes `from_pretrained` of the model's class.

    Raises:
        ValueError, RuntimeError: a weight is missing, left over or of another shape.
    """
    assert isinstance(model, PreTrainedModel)
    saved = load_model(checkpoint) if load_model else load_whole(type(model), checkpoint, dtype=model.dtype)
    model.load_state_dict(saved.state_dict(), strict=True)
