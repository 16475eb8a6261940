"""Original LLaVA's configuration against transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlavaConfig, PretrainedConfig

from llava.model.assemble import wrap_config
from llava.model.original.names import read_config
from llava.model.projector import VisionFeatures, vision_of

_TEXT_TYPES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
_ORIGINAL_TYPES = {
    "llama": ("LlavaLlamaForCausalLM", "llava_llama"),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral"),
}
# what the language model's configuration in LLaVA-v1.5's transformers (4.37) reads, the rotary angles apart
_COMMON_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_cache",
)
_OWN_KEYS = {"llama": ["attention_bias", "pretraining_tp"], "mistral": ["sliding_window"]}
_OLD_SCALINGS = ("linear", "dynamic")


def config_from_original(folder: Path, vision_tower: str | None = None) -> LlavaConfig:
    """Transformers' configuration of an original-layout folder (full model or LoRA adapter).

    ``vision_tower`` is where the tower lies if not at the place that the folder's configuration names.
    """
    original = read_config(folder)
    tower = vision_tower or original["mm_vision_tower"]
    text = text_config(original, folder)
    try:
        vision = AutoConfig.from_pretrained(tower)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: cannot read its vision tower {tower}; name its folder ({error})") from error
    config = wrap_config(
        text,
        getattr(vision, "vision_config", vision),
        text.vocab_size,
        VisionFeatures(
            original.get("mm_projector_type", "linear"),
            original.get("mm_vision_select_layer", -2),
            original.get("mm_vision_select_feature", "patch"),
        ),
    )
    config.dtype = original.get("torch_dtype") or original.get("dtype") or "float16"
    config.mm_vision_tower = tower
    config.tokenizer_model_max_length = original.get("tokenizer_model_max_length", 2048)
    return config


def text_config(original: dict[str, Any], folder: Path) -> PretrainedConfig:
    """The language model's configuration inside an original LLaVA configuration."""
    architecture = (original.get("architectures") or ["none"])[0]
    if architecture not in _TEXT_TYPES:
        raise ValueError(f"{folder}: architecture {architecture} is not one of {', '.join(_TEXT_TYPES)}")
    if original.get("mm_use_im_start_end") or original.get("mm_patch_merge_type", "flat") != "flat":
        raise ValueError(f"{folder}: image start/end tokens and split images are not LLaVA-1.5; cannot convert")
    values = {key: value for key, value in original.items() if not key.startswith(("mm_", "model_type", "image_"))}
    return AutoConfig.for_model(_TEXT_TYPES[architecture], **values)


def original_config(config: LlavaConfig, tower: str, pad_images: bool, source: Path) -> dict[str, Any]:
    """``config.json`` of original LLaVA, its tower apart, for a model in transformers' layout at ``source``.

    Raises ValueError for what LLaVA-v1.5's transformers (4.37) cannot express or would leave out in silence.
    """
    text: Any = config.text_config
    architecture, model_type = _ORIGINAL_TYPES[text.model_type]
    values = text.to_dict()
    head = values.get("head_dim")
    if values.get("mlp_bias") or head not in (None, values["hidden_size"] // values["num_attention_heads"]):
        raise ValueError(f"{source}: biases in the MLP and heads of another width are unknown to LLaVA's own loader")
    out = {key: values[key] for key in (*_COMMON_KEYS, *_OWN_KEYS[text.model_type])}
    limit = getattr(config, "tokenizer_model_max_length", None)
    if limit is not None:
        out["tokenizer_model_max_length"] = limit
    features = VisionFeatures.of(config)
    return (
        out
        | _old_rotary(text, source)
        | {
            "architectures": [architecture],
            "model_type": model_type,
            "vocab_size": config.image_token_index,
            "pad_token_id": 0,
            "torch_dtype": str(config.dtype).removeprefix("torch."),
            "image_aspect_ratio": "pad" if pad_images else "square",
            "mm_hidden_size": vision_of(config).hidden_size,
            "mm_projector_type": features.projector_type,
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": features.feature,
            "mm_vision_select_layer": features.layer,
            "mm_vision_tower": tower,
            "unfreeze_mm_vision_tower": False,
            "use_mm_proj": True,
        }
    )


def _old_rotary(text: PretrainedConfig, source: Path) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` in the form before transformers 5 joined the two in ``rope_parameters``."""
    rope = dict(text.rope_parameters)
    kind, factor = rope.get("rope_type", "default"), float(rope.get("factor", 1.0))
    partial = rope.get("partial_rotary_factor", 1.0)
    scaling = None if kind == "default" or (kind == "linear" and factor == 1.0) else {"type": kind, "factor": factor}
    if partial != 1.0 or (scaling and (text.model_type != "llama" or kind not in _OLD_SCALINGS or factor <= 1.0)):
        raise ValueError(
            f"{source}: LLaVA's own loader knows rotary scaling of Llama alone, linear or dynamic by a factor above 1; "
            f"this {text.model_type} has {rope}"
        )
    return {"rope_theta": rope["rope_theta"]} | ({"rope_scaling": scaling} if text.model_type == "llama" else {})


def recorded_tower(config: LlavaConfig, source: Path) -> str:
    """The vision tower that a model was made with, from its configuration. Raises ValueError if it does not say."""
    tower = getattr(config, "mm_vision_tower", None)
    if tower is None:
        raise ValueError(f"{source}: which vision tower it was made with is not recorded; give --vision-tower")
    return tower
