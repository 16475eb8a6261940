"""Projector-only files: LLaVA's ``mm_projector.bin``."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llava.model.projector import original_names, projector_shapes

_MARK = "mm_projector."


def read_tensors(file: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """All tensors of a ``.safetensors`` or ``.bin`` file, memory-mapped where the format can."""
    try:
        if str(file).endswith(".safetensors"):
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{file}: not a readable weight file ({error})") from error


def read_projector(
    file: str | os.PathLike[str], projector_type: str, vision_size: int, text_size: int
) -> dict[str, torch.Tensor]:
    """The projector in ``file``, by our names, checked against the type and widths before anything else is loaded.

    Raises ValueError naming the file and the first parameter that is missing, unknown or of another shape.
    """
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such projector file")
    held = {name.split(_MARK, 1)[1]: tensor for name, tensor in read_tensors(file).items() if _MARK in name}
    names = original_names(projector_type)
    if held.keys() != names.keys():
        odd = sorted(held.keys() ^ names.keys())
        raise ValueError(
            f"{file}: not a projector of type {projector_type} (differs in {', '.join(odd[:4])}); "
            f"give the --mm_projector_type that it was trained with"
        )
    shapes = projector_shapes(projector_type, vision_size, text_size)
    for layer, (width_out, width_in) in enumerate(shapes, start=1):
        for original, ours in names.items():
            wanted = (width_out, width_in) if ours.endswith("weight") else (width_out,)
            if ours.startswith(f"linear_{layer}.") and tuple(held[original].shape) != wanted:
                raise ValueError(
                    f"{file}: {original} has shape {tuple(held[original].shape)}, but this vision tower and "
                    f"language model need {wanted}"
                )
    return {ours: held[original] for original, ours in names.items()}


def write_projector(tensors: dict[str, torch.Tensor], projector_type: str, file: str | os.PathLike[str]) -> None:
    """Write a projector (our names, ``linear_1.weight`` …) as LLaVA's ``mm_projector.bin``, whole or not at all."""
    out = {
        f"model.{_MARK}{original}": tensors[ours].detach().cpu().contiguous()
        for original, ours in original_names(projector_type).items()
    }
    target = Path(file)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    torch.save(out, temporary)
    os.replace(temporary, target)
