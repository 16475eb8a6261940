"""Projector-only files: LLaVA's ``mm_projector.bin``."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from eval.files import whole_file
from llava.model.projector import original_names, projector_shapes
from llava.model.shards import read_shard

PROJECTOR_FILE = "mm_projector.bin"
"""LLaVA's name of such a file."""
_MARK = "mm_projector."
_OUR_MARK = "multi_modal_projector."


def read_projector(
    file: str | os.PathLike[str], projector_type: str, vision_size: int, text_size: int
) -> dict[str, torch.Tensor]:
    """The projector in ``file``, by our names, checked against the type and widths before anything else is loaded.

    Raises ValueError naming the file and the first parameter that is missing, unknown or of another shape.
    """
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such projector file")
    held = {name.split(_MARK, 1)[1]: tensor for name, tensor in read_shard(Path(file)) if _MARK in name}
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
    named = original_tensors(tensors, projector_type)
    _write(Path(file), {f"model.{_MARK}{original}": tensor for original, tensor in named.items()})


def original_tensors(tensors: dict[str, torch.Tensor], projector_type: str) -> dict[str, torch.Tensor]:
    """Our names (``linear_1.weight`` …) → original names (``0.weight`` …)."""
    names = original_names(projector_type)
    return {original: tensors[ours].detach().cpu().contiguous() for original, ours in names.items()}


def type_of_names(originals: set[str]) -> str:
    """The projector type whose original names are exactly ``originals``. Raises ValueError if there is none."""
    depth = len(originals) // 2
    for kind in ("identity", "linear") if depth == 0 or "weight" in originals else (f"mlp{depth}x_gelu",):
        if original_names(kind).keys() == originals:
            return kind
    raise ValueError(f"not a projector of a known type (it holds {', '.join(sorted(originals)[:4])})")


def convert_projector_file(source: Path, output: Path, to: str) -> None:
    """``mm_projector.bin`` ⇄ a safetensors file with transformers' names; ``to`` "transformers" or "original"."""
    held = dict(read_shard(source))
    if to == "transformers":
        originals = {name.split(_MARK, 1)[1]: tensor for name, tensor in held.items() if _MARK in name}
        try:
            known = original_names(type_of_names(set(originals)))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        _write(output, {f"{_OUR_MARK}{ours}": originals[original] for original, ours in known.items()})
        return
    ours = {name.split(_OUR_MARK, 1)[1]: tensor for name, tensor in held.items() if _OUR_MARK in name}
    # one layer can be linear or mlp1x_gelu: the same function, and "linear" is what LLaVA users call it
    kind = "linear" if len(ours) == 2 else f"mlp{len(ours) // 2}x_gelu"
    if not ours or set(original_names(kind).values()) != ours.keys():
        raise ValueError(f"{source}: holds no projector in transformers' layout")
    write_projector(ours, kind, output)


def _write(target: Path, tensors: dict[str, torch.Tensor]) -> None:
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save = save_file if target.suffix == ".safetensors" else torch.save
    with whole_file(target) as temporary:
        save(copies, temporary)
