"""The model of a run: loaded on every rank, what learns set, LoRA put on.

Parts and checkpoints in LLaVA's original layout have become a folder in transformers' layout first (``make_base``),
which every rank loads in the same way, partitioned under ZeRO-3.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedModel

from llava.model.family import Family
from llava.model.lora import lora_config, quantization_config
from llava.train.arguments import ModelArguments, TrainingArguments, UsageError
from llava.train.source import Source


def load_base(source: Source, base: Path, model: ModelArguments, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model on this rank (its part of it under ZeRO-3)."""
    quantization = quantization_config(model.bits, source.family, dtype, model.double_quant, model.quant_type)
    try:
        net = source.family.load_model(
            base, dtype=dtype, attn_implementation=model.attn_implementation, quantization_config=quantization
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if source.vision_tower is not None:
        net.config.mm_vision_tower = _recorded(model.vision_tower or "")
    return net


def weight_dtype(model: ModelArguments, training: TrainingArguments) -> torch.dtype:
    """Return the dtype that weights are loaded in.

    bfloat16 where something else keeps float32 masters (DeepSpeed) or where most weights stay as they are (LoRA, or the
    projector alone); else float32, with mixed precision by autocast.
    """
    frozen = model.lora_enable or model.tune_mm_mlp_adapter
    if training.bf16 and (training.deepspeed or frozen):
        return torch.bfloat16
    return torch.float16 if training.fp16 and training.deepspeed else torch.float32


def choose_trainable(net: PreTrainedModel, family: Family, model: ModelArguments) -> None:
    """Set what learns: language model and projector, unless the arguments say otherwise (LoRA adds its own)."""
    net.requires_grad_(False)
    parts = {
        "vision": model.unfreeze_mm_vision_tower,
        "projector": not model.freeze_mm_mlp_adapter,
        "language": not (model.freeze_backbone or model.tune_mm_mlp_adapter or model.lora_enable),
    }
    # In this order: Qwen's projector lies inside its tower.
    for kind, learns in parts.items():
        for parameter in family.find_parameters(net, kind):
            parameter.requires_grad_(learns)
    for module in family.unused_vision_modules(net):
        module.requires_grad_(False)
    if not model.lora_enable and not any(parameter.requires_grad for parameter in net.parameters()):
        raise UsageError("nothing is left to train: the arguments freeze every part that has weights")


def keep_masters(net: nn.Module) -> None:
    """Hold what learns in float32, where no DeepSpeed keeps a float32 copy of it."""
    for parameter in net.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def adapter_base(source: Source, model: ModelArguments, base: Path) -> Path | str:
    """Return what an adapter of this run stands on, as its configuration records it: a folder or a Hugging Face name.

    The model that the run started from, or the bare language model of parts, whose projector the adapter brings. Only
    where the adapter brings none is it the model that was built in the output folder.
    """
    if source.kind == "parts" and model.freeze_mm_mlp_adapter:
        return base.resolve()
    return _recorded(model.model_name_or_path or "")


def _recorded(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def add_lora(
    net: PreTrainedModel, family: Family, model: ModelArguments, base: Path | str, one_dtype: bool
) -> PeftModel:
    """Wrap the model in LoRA: the language model's linear layers adapted, the projector trained in full.

    Args:
        one_dtype: keep adapters in the model's dtype (DeepSpeed wants one for all that learns, and holds float32
            masters itself) rather than in float32.
    """
    if model.bits != 16:
        prepare_model_for_kbit_training(net, use_gradient_checkpointing=False)
    if model.lora_weight_path is not None:
        return PeftModel.from_pretrained(
            net, model.lora_weight_path, is_trainable=True, autocast_adapter_dtype=not one_dtype
        )
    config = lora_config(
        net,
        family,
        model.lora_r,
        model.lora_alpha,
        model.lora_dropout,
        model.lora_bias,
        not model.freeze_mm_mlp_adapter,
    )
    adapted = cast(PeftModel, get_peft_model(net, config, autocast_adapter_dtype=not one_dtype))
    config.base_model_name_or_path = str(base)  # PEFT has put the folder there that the weights were loaded from
    return adapted
