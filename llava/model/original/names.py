"""Original LLaVA's layout against transformers': parameter names and shapes.

Original: ``model.layers.…``, ``lm_head``, ``model.mm_projector.0``, the CLIP tower apart (or, where it was trained
too, under ``model.vision_tower.vision_tower``). Transformers' hub layout: ``language_model.model.layers.…``,
``language_model.lm_head``, ``multi_modal_projector.linear_1``, ``vision_tower.vision_model.…``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import LlavaConfig

from llava.model.projector import original_names, projector_for
from llava.model.upstream import hub_state_dict, llava_shell

# kept by old versions of the libraries, and computed since: not parameters
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")
_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."
VOCAB_ROWS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` as it is. Raises ValueError if absent or not JSON."""
    file = folder / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder}: no config.json there, so this is not a saved model") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error


def is_original(config: dict[str, Any]) -> bool:
    """True for a configuration in original LLaVA's layout."""
    return "mm_vision_tower" in config and "vision_config" not in config


def to_hub_name(name: str, projector_type: str) -> str | None:
    """Original parameter name → transformers' hub name; None for a buffer that needs no keeping."""
    if _BUFFERS.search(name):
        return None
    if name.startswith(_PROJECTOR):
        original = name.removeprefix(_PROJECTOR)
        known = original_names(projector_type)
        if original not in known:
            raise ValueError(f"{name} is no part of a projector of type {projector_type}")
        return f"multi_modal_projector.{known[original]}"
    if name.startswith(_TOWER):
        return f"vision_tower.{name.removeprefix(_TOWER)}"
    if name == "lm_head.weight" or re.match(r"model\.(layers|embed_tokens|norm)\.", name):
        return f"language_model.{name}"
    raise ValueError(f"{name} is not a parameter of a LLaVA-1.5 model")


def to_original_name(name: str, projector_type: str) -> str:
    """Transformers' hub name → original parameter name."""
    if name.startswith("language_model."):
        return name.removeprefix("language_model.")
    if name.startswith("vision_tower."):
        return _TOWER + with_tower_prefix(name).removeprefix("vision_tower.")
    if name.startswith("multi_modal_projector."):
        originals = {ours: original for original, ours in original_names(projector_type).items()}
        return _PROJECTOR + originals[name.removeprefix("multi_modal_projector.")]
    raise ValueError(f"{name} is not a parameter of a LLaVA model in transformers' layout")


def with_tower_prefix(name: str) -> str:
    """``vision_tower.x`` → ``vision_tower.vision_model.x``: newer transformers may leave the level out."""
    inner = name.removeprefix("vision_tower.").removeprefix("vision_model.")
    return f"vision_tower.vision_model.{inner}"


def hub_layout(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's hub name and shape, from a model on the meta device. Costs no memory."""
    with projector_for(config):
        model = llava_shell(config)
    return {name: tuple(tensor.shape) for name, tensor in hub_state_dict(model).items()}


def check_layout(found: dict[str, tuple[int, ...]], config: LlavaConfig, source: Path) -> None:
    """Raise ValueError naming the first parameter that is missing, too much or of another shape."""
    wanted = hub_layout(config)
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found and not (config.tie_word_embeddings and name == VOCAB_ROWS[1]):
            raise ValueError(f"{source}: the weights lack {name}")
        if name in found and found[name] != wanted.get(name):
            raise ValueError(f"{source}: {name} has shape {found[name]}, but the configuration says {wanted.get(name)}")
