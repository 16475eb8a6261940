"""LoRA and quantised loading: what LLaVA adapts, and what it trains in full."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig

from llava.model.family import Family


def language_linear_names(model: nn.Module, family: Family) -> list[str]:
    """Full names of the linear layers inside the language model: no vision tower, no projector, no lm_head."""
    prefixes = tuple(f"{prefix}." for prefix in family.language_modules)
    # by kind and not by class: quantised layers are subclasses of nn.Linear
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefixes) and not name.endswith("lm_head")
    ]


def target_pattern(leaf_names: Iterable[str], part: str = "language_model") -> str:
    """PEFT's ``target_modules`` for these layers of the language model only (the tower has layers named alike)."""
    return rf".*{re.escape(part)}\.layers\..*\.({'|'.join(sorted(leaf_names))})"


def lora_config(
    model: nn.Module,
    family: Family,
    r: int = 128,
    alpha: int = 256,
    dropout: float = 0.05,
    bias: str = "none",
    train_projector: bool = True,
) -> LoraConfig:
    """LoRA on every linear layer of the language model; the projector is trained in full and saved with the adapter."""
    leaves = {name.rsplit(".", 1)[-1] for name in language_linear_names(model, family)}
    modules = dict(model.named_modules())
    projector = [_end_of_path(prefix) for prefix in family.projector_modules if prefix in modules]
    has_weights = any(True for _ in family.find_parameters(model, "projector"))
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias=bias,  # type: ignore[arg-type]
        target_modules=target_pattern(leaves, family.language_modules[0].rsplit(".", 1)[-1]),
        modules_to_save=projector if train_projector and has_weights else None,
        task_type="CAUSAL_LM",
    )


def _end_of_path(path: str) -> str:
    """What PEFT finds a module by: its own name, with that of its list where it is one of a list."""
    *_, above, name = ("", *path.split("."))
    return f"{above}.{name}" if name.isdigit() else name


def quantization_config(
    bits: int,
    family: Family,
    compute_dtype: torch.dtype = torch.float16,
    double_quant: bool = True,
    quant_type: str = "nf4",
) -> BitsAndBytesConfig | None:
    """bitsandbytes settings for 4 or 8 bits, None for 16 or more. Tower, projector and lm_head stay whole.

    Raises ValueError for another number of bits, and RuntimeError if bitsandbytes is not installed.
    """
    if bits in (16, 32):
        return None
    if bits not in (4, 8):
        raise ValueError(f"--bits must be 4, 8, 16 or 32, not {bits}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RuntimeError(f"{bits}-bit loading needs bitsandbytes; install it with: pip install 'visatb[qlora]'")
    whole: list[Any] = [*family.vision_modules, *family.projector_modules, "lm_head"]
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=whole,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
    )
