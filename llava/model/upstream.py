"""What llava takes from inside transformers, in one place: names that a new release may change without a word.

Each function says what is taken and why there is no public way. ``tests/model/test_upstream.py`` holds every one of
them against the installed release, and sees to it that no other file of llava reaches behind an underscore.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import unittest.mock
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel, ProcessorMixin
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.models.llava import modeling_llava


def shell(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model of this class without weights, on the meta device. ``_from_config``: see `llava_shell`."""
    with torch.device("meta"):
        return model_class._from_config(config)


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


def image_token_counts(processor: ProcessorMixin, sizes: Sequence[tuple[int, int]]) -> list[int] | None:
    """Tokens of images of these heights and widths by the processor's own arithmetic; None where it has none.

    ``_get_num_multimodal_tokens``: made for serving engines; nothing public counts without pixels.
    """
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    found = None if count is None else count(image_sizes=[list(size) for size in sizes]).num_image_tokens
    return None if found is None else [int(number) for number in found]


def processor_class(name: str) -> type[ProcessorMixin]:
    """A processor's class by its name. Raises ImportError where a library is missing for it.

    ``__module__``: Pixtral's module takes one function from an image processor that needs torchvision, though the one
    for Pillow has the same. Without torchvision it is imported with that one in the other's place.
    """
    found: Any = getattr(transformers, name)
    if not getattr(found, "is_dummy", False):
        return found
    module = str(found.__module__)
    wanted = module.replace(".processing_", ".image_processing_")
    try:
        sys.modules[wanted] = importlib.import_module(module.replace(".processing_", ".image_processing_pil_"))
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return found.get_attributes()  # raises in transformers' own words
    finally:
        sys.modules.pop(wanted, None)


def image_only(kind: type[ProcessorMixin], parts: dict[str, Any], settings: dict[str, Any]) -> Any:
    """A processor without what it has for video and sound: ``parts`` has None for these.

    ``check_argument_for_proper_class``: the constructor refuses None by it. Video processors need torchvision, and
    images and text need no video processor.
    """
    stock = kind.check_argument_for_proper_class

    def check(self: ProcessorMixin, name: str, argument: Any) -> Any:
        return None if argument is None else stock(self, name, argument)

    with unittest.mock.patch.object(kind, "check_argument_for_proper_class", check):
        return kind(**parts, **settings)
