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
from llava.model.tokenizer import SENTENCEPIECE_FILE, read_sentencepiece, sentencepiece_file

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
            "mm_projector_type": projector_type_of(config),
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": select_feature_of(config),
            "mm_vision_select_layer": config.vision_feature_layer,
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


def processor_from_original(
    folder: Path, config: LlavaConfig, tokenizer_folder: str | Path | None = None
) -> LlavaSquareProcessor:
    """The processor of an original-layout folder; LLaVA-1.5 pads images to a square."""
    padded = read_config(folder).get("image_aspect_ratio", "pad") == "pad"
    tokenizer = load_base_tokenizer(tokenizer_folder or folder, config.image_token_index)
    return LlavaSquareProcessor(tokenizer, square_image_processor(vision_of(config).image_size, padded), config)


def base_tokenizer_model(processor: LlavaSquareProcessor, source: Path) -> Path:
    """The ``tokenizer.model`` of the model at ``source``. Raises ValueError where there is none."""
    file = sentencepiece_file(source, processor.tokenizer)
    if file is None:
        raise ValueError(
            f"{source}: has no tokenizer.model, the only form of a tokenizer that LLaVA's own loader reads; put the "
            "language model's there"
        )
    return file


def write_base_tokenizer(processor: LlavaSquareProcessor, model: Path, folder: Path) -> None:
    """The tokenizer as the language model had it, without the added ``<image>`` and ``<pad>``.

    In the files that LLaVA-v1.5's transformers (4.37) reads: ``model`` (a tokenizer.model), and settings that name the
    slow tokenizer. No tokenizer.json: of today's, that version can read neither the merges nor the class.
    """
    tokenizer: Any = processor.tokenizer
    special = {name: str(getattr(tokenizer, name)) for name in ("bos_token", "eos_token", "unk_token")}
    special["pad_token"] = special["unk_token"]  # as original LLaVA pads
    # asked of the tokenizer itself: not every class of transformers says these
    plain = tokenizer("a").input_ids
    after_end = tokenizer.tokenize(f"a{tokenizer.eos_token}a")[-1]
    settings = special | {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": after_end.startswith("▁"),
        "add_bos_token": plain[0] == tokenizer.bos_token_id,
        "add_eos_token": plain[-1] == tokenizer.eos_token_id,
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": "right",
        "sp_model_kwargs": {},
    }
    if isinstance(tokenizer.chat_template, str):
        settings["chat_template"] = tokenizer.chat_template
    pieces = read_sentencepiece(model).get_piece_size()
    marks = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {
        str(token): {mark: getattr(content, mark) for mark in marks}
        for token, content in tokenizer.added_tokens_decoder.items()
        if pieces <= token < processor.image_token_id
    }
    if added:
        settings["added_tokens_decoder"] = added
    shutil.copyfile(model, folder / SENTENCEPIECE_FILE)
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def recorded_tower(config: LlavaConfig, source: Path) -> str:
    """The vision tower that a model was made with, from its configuration. Raises ValueError if it does not say."""
    tower = getattr(config, "mm_vision_tower", None)
    if tower is None:
        raise ValueError(f"{source}: which vision tower it was made with is not recorded; give --vision-tower")
    return tower
