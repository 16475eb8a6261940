"""Original LLaVA's layout against transformers': configuration, processor and tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlavaConfig, PretrainedConfig

from llava.model.build import load_base_tokenizer, select_feature_of, wrap_config
from llava.model.families.llava import LlavaSquareProcessor, square_image_processor
from llava.model.original import read_config
from llava.model.projector import projector_type_of, vision_of

_TEXT_TYPES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
_ORIGINAL_TYPES = {
    "llama": ("LlavaLlamaForCausalLM", "llava_llama"),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral"),
}


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
        original.get("mm_projector_type", "linear"),
        original.get("mm_vision_select_layer", -2),
        original.get("mm_vision_select_feature", "patch"),
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


def original_config(config: LlavaConfig, tower: str, tower_inside: bool, pad_images: bool) -> dict[str, Any]:
    """``config.json`` of original LLaVA for a model in transformers' layout."""
    text: Any = config.text_config
    architecture, model_type = _ORIGINAL_TYPES[text.model_type]
    values = text.to_dict()
    values["rope_theta"] = values["rope_parameters"]["rope_theta"]  # where older readers look
    return values | {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.image_token_index,
        "pad_token_id": 0,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        "dtype": str(config.dtype).removeprefix("torch."),
        "image_aspect_ratio": "pad" if pad_images else "square",
        "mm_hidden_size": vision_of(config).hidden_size,
        "mm_projector_type": projector_type_of(config),
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": select_feature_of(config),
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": tower,
        "unfreeze_mm_vision_tower": tower_inside,
        "use_mm_proj": True,
    }


def processor_from_original(
    folder: Path, config: LlavaConfig, tokenizer_folder: str | Path | None = None
) -> LlavaSquareProcessor:
    """The processor of an original-layout folder; LLaVA-1.5 pads images to a square."""
    padded = read_config(folder).get("image_aspect_ratio", "pad") == "pad"
    tokenizer = load_base_tokenizer(tokenizer_folder or folder, config.image_token_index)
    return LlavaSquareProcessor(tokenizer, square_image_processor(vision_of(config).image_size, padded), config)


def write_base_tokenizer(processor: LlavaSquareProcessor, source: Path, folder: Path) -> None:
    """The tokenizer as the language model had it: without the added ``<image>`` and ``<pad>``."""
    first_added = processor.image_token_id
    processor.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < first_added]
    file.write_text(json.dumps(content, ensure_ascii=False))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["pad_token"] = processor.tokenizer.unk_token  # as original LLaVA pads
    settings.pop("processor_class", None)
    settings.pop("added_tokens_decoder", None)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if (source / "tokenizer.model").exists():
        shutil.copy(source / "tokenizer.model", folder)


def recorded_tower(config: LlavaConfig, source: Path) -> str:
    """The vision tower that a model was made with, from its configuration. Raises ValueError if it does not say."""
    tower = getattr(config, "mm_vision_tower", None)
    if tower is None:
        raise ValueError(f"{source}: which vision tower it was made with is not recorded; give --vision-tower")
    return tower
