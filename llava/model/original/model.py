"""Whole models: original LLaVA's layout ⇄ transformers', one shard in memory at a time beside the vision tower."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import CLIPVisionModel, LlavaConfig

from llava.model.assemble import generation_config, pad_rows
from llava.model.families.llava import LlavaFamily
from llava.model.original.config import config_from_original, original_config, recorded_tower
from llava.model.original.names import VOCAB_ROWS, check_layout, to_hub_name, to_original_name, with_tower_prefix
from llava.model.original.processor import base_tokenizer_model, processor_from_original, write_base_tokenizer
from llava.model.projector import projector_type_of, text_of
from llava.model.shards import ShardWriter, read_shard, weight_files, whole_folder


def tensors_from_original(folder: Path, config: LlavaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """``(hub name, tensor)`` of an original-layout model, vocabulary padded, the tower in the model's dtype."""
    kind = projector_type_of(config)
    rows = text_of(config).vocab_size
    dtype, tower_seen = torch.float16, False
    for file in weight_files(folder):
        for name, tensor in read_shard(file):
            hub = to_hub_name(name, kind)
            if hub is None:
                continue
            dtype = tensor.dtype
            tower_seen = tower_seen or hub.startswith("vision_tower.")
            yield hub, pad_rows(tensor, rows) if hub in VOCAB_ROWS else tensor
    if not tower_seen:
        yield from _tower_tensors(config.mm_vision_tower, dtype)


def from_original(source: Path, output: Path, vision_tower: str | None = None) -> None:
    """Write an original-layout full model in transformers' layout, with processor and generation settings."""
    config = config_from_original(source, vision_tower)
    processor = processor_from_original(source, config)
    with whole_folder(output) as folder:
        writer = ShardWriter(folder)
        for name, tensor in tensors_from_original(source, config):
            writer.add(name, tensor)
        check_layout(writer.shapes, config, source)
        writer.finish()
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        generation_config(config, processor.tokenizer).save_pretrained(folder)


def to_original(source: Path, output: Path, vision_tower: str | None = None) -> None:
    """Write a model in transformers' layout as original LLaVA's.

    Added vocabulary rows are dropped. The tower stays apart if it equals ``vision_tower`` (default: the one the model
    was made with) bit for bit; a tower that was trained goes into the checkpoint.
    """
    config = LlavaConfig.from_pretrained(source)
    kind, vocab_size = projector_type_of(config), config.image_token_index
    tower = vision_tower or recorded_tower(config, source)
    processor = LlavaFamily().load_processor(source)
    tokenizer_model = base_tokenizer_model(processor, source)
    values = original_config(config, tower, bool(processor.image_processor.do_pad), source)
    reference = dict(_tower_tensors(tower, None))
    with whole_folder(output) as folder:
        writer, own_tower = ShardWriter(folder), {}
        for file in weight_files(source):
            for name, tensor in read_shard(file):
                if name.startswith("vision_tower."):
                    own_tower[with_tower_prefix(name)] = tensor
                else:
                    kept = tensor[:vocab_size] if name in VOCAB_ROWS else tensor
                    writer.add(to_original_name(name, kind), kept)
        inside = not _same_tower(own_tower, reference)
        for name, tensor in own_tower.items() if inside else ():
            writer.add(to_original_name(name, kind), tensor)
        writer.finish()
        values["unfreeze_mm_vision_tower"] = inside
        (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        write_base_tokenizer(processor, tokenizer_model, folder)


def _tower_tensors(tower: str, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        model = CLIPVisionModel.from_pretrained(tower, dtype=dtype or "auto")
    except (OSError, ValueError) as error:
        raise ValueError(f"{tower}: cannot load this vision tower ({error})") from error
    for name, tensor in model.state_dict().items():
        yield with_tower_prefix(f"vision_tower.{name}"), tensor


def _same_tower(own: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> bool:
    if own.keys() != reference.keys():
        return False
    return all(torch.equal(tensor, reference[name].to(tensor.dtype)) for name, tensor in own.items())
