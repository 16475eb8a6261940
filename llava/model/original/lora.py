"""LoRA adapters: original LLaVA's (adapter + ``non_lora_trainables.bin``) ⇄ PEFT on transformers' LLaVA.

Only the layout differs: the language model sits one level deeper in transformers' LLaVA, and the projector, trained in
full, is part of the PEFT adapter (``modules_to_save``) and not a file of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlavaConfig

from llava.model.families.llava import LlavaFamily
from llava.model.lora import target_pattern
from llava.model.original.config import config_from_original, original_config, recorded_tower
from llava.model.original.names import read_config
from llava.model.original.processor import base_tokenizer_model, processor_from_original, write_base_tokenizer
from llava.model.projector import original_names, projector_type_of
from llava.model.projector_file import original_tensors
from llava.model.shards import read_shard, whole_folder

NON_LORA = "non_lora_trainables.bin"
_PEFT = "base_model.model.model."  # PEFT's two levels, then the causal model's own
_PROJECTOR = "multi_modal_projector"


def lora_from_original(
    source: Path, output: Path, vision_tower: str | None = None, model_base: str | None = None
) -> None:
    """Write an original LLaVA LoRA adapter as a PEFT adapter for transformers' LLaVA.

    ``model_base`` is the language model's folder (for its tokenizer) if not where the adapter's configuration says.
    """
    config = config_from_original(source, vision_tower)
    settings = _adapter_settings(source)
    base = model_base or settings["base_model_name_or_path"]
    own_tokenizer = (source / "tokenizer_config.json").exists()
    processor = processor_from_original(source, config, source if own_tokenizer else base)
    known = original_names(projector_type_of(config))
    tensors = {}
    for name, tensor in read_shard(_adapter_file(source)):
        if not name.startswith(f"{_PEFT}layers."):
            raise ValueError(f"{source}: {name} is not LoRA on the language model's layers")
        tensors[f"{_PEFT}language_model.{name.removeprefix(_PEFT)}"] = tensor
    for name, tensor in read_shard(source / NON_LORA):
        original = name.split("mm_projector.", 1)[-1]
        if original not in known:
            raise ValueError(f"{source / NON_LORA}: {name} is not part of the projector")
        tensors[f"{_PEFT}{_PROJECTOR}.{known[original]}"] = tensor
    settings |= {
        "base_model_name_or_path": str(base),
        "target_modules": target_pattern(settings["target_modules"]),
        "modules_to_save": [_PROJECTOR],
    }
    with whole_folder(output) as folder:
        _write_adapter(folder, tensors, settings)
        config.save_pretrained(folder)
        processor.save_pretrained(folder)


def lora_to_original(source: Path, output: Path, vision_tower: str | None = None) -> None:
    """Write a PEFT adapter of transformers' LLaVA as original LLaVA's adapter and ``non_lora_trainables.bin``."""
    config = LlavaConfig.from_pretrained(source)
    tower = vision_tower or recorded_tower(config, source)
    settings = _adapter_settings(source)
    processor = LlavaFamily().load_processor(source)
    lora, projector, leaves = {}, {}, set()
    for name, tensor in read_shard(_adapter_file(source)):
        if name.startswith(f"{_PEFT}{_PROJECTOR}."):
            projector[name.removeprefix(f"{_PEFT}{_PROJECTOR}.")] = tensor
        elif name.startswith(f"{_PEFT}language_model.layers."):
            lora[_PEFT + name.removeprefix(f"{_PEFT}language_model.")] = tensor
            leaves.add(name.split(".lora_")[0].rsplit(".", 1)[-1])
        else:
            raise ValueError(f"{source}: {name} has no place in original LLaVA's layout")
    originals = original_tensors(projector, projector_type_of(config))
    settings |= {"target_modules": sorted(leaves), "modules_to_save": None}
    values = original_config(config, tower, bool(processor.image_processor.do_pad), source)
    tokenizer_model = base_tokenizer_model(processor, source)
    with whole_folder(output) as folder:
        _write_adapter(folder, lora, settings)
        held = {f"{_PEFT}mm_projector.{original}": tensor for original, tensor in originals.items()}
        torch.save(held, folder / NON_LORA)
        (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        write_base_tokenizer(processor, tokenizer_model, folder)


def is_original_adapter(folder: Path) -> bool:
    """True for a LoRA adapter as original LLaVA writes it."""
    return (folder / NON_LORA).exists() and "vision_config" not in read_config(folder)


def _adapter_settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def _adapter_file(folder: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{folder}: holds adapter_config.json but no adapter_model weights")


def _write_adapter(folder: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
