"""What llava takes from inside transformers, in one place: names that a new release may change without a word.

Each function says what is taken and why there is no public way. ``tests/model/test_upstream.py`` holds every one of
them against the installed release, and sees to it that no other file of llava reaches behind an underscore.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.models.llava import modeling_llava


def llava_shell(config: LlavaConfig, attn_implementation: str | None = None) -> LlavaForConditionalGeneration:
    """A LLaVA without weights, on the meta device.

    ``_from_config``: the constructor takes no ``attn_implementation``.
    """
    with torch.device("meta"):
        return LlavaForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)


@contextlib.contextmanager
def projector_class(replacement: type[nn.Module] | None) -> Iterator[None]:
    """While open, LLaVA models are built with ``replacement`` as their projector; None keeps transformers' own.

    ``modeling_llava.LlavaMultiModalProjector``: the class is named in the model's code, and no configuration sets it.
    """
    module: Any = modeling_llava
    stock = module.LlavaMultiModalProjector
    if replacement is not None:
        module.LlavaMultiModalProjector = replacement
    try:
        yield
    finally:
        module.LlavaMultiModalProjector = stock


def save_under_hub_names(model: PreTrainedModel) -> None:
    """Make ``save_pretrained`` write the names that published checkpoints have and other engines look for.

    ``_weight_conversions``: set by ``from_pretrained`` only, and a model put together here was not loaded. Without it
    the tower would be saved without its ``vision_model.`` prefix.
    """
    inside: Any = model
    inside._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)


def hub_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's parameters under the names that ``save_pretrained`` would write, none of them read."""
    save_under_hub_names(model)
    return revert_weight_conversion(model, model.state_dict())


def attention_of(model: PreTrainedModel) -> str | None:
    """The attention that the model runs with. ``_attn_implementation``: its public name can only be set."""
    return model.config._attn_implementation


def undivided_layers(model: PreTrainedModel) -> list[str]:
    """Class names of the layers that must stay on one device. ``_no_split_modules``: said nowhere else."""
    return list(model._no_split_modules or ())


@contextlib.contextmanager
def without_zero3() -> Iterator[None]:
    """Load whole models on one rank although the run is under ZeRO-3, where loading is done by all ranks together.

    ``_hf_deepspeed_config_weak_ref``: what ``from_pretrained`` asks, and the only way to set it back.
    """
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    held = reference() if reference is not None else None
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if held is not None:
            hf_deepspeed.set_hf_deepspeed_config(held)
