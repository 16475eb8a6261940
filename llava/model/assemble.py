"""Make a LLaVA from a language model, a CLIP vision tower and a projector.

The result is transformers' own ``LlavaForConditionalGeneration``, with the vocabulary padded as llava-hf does: the
language model's rows, then ``<image>``, ``<pad>`` and zero rows up to a multiple of 64. Everything that can be seen
from the configurations and from the projector file's header is checked before any large weight is loaded.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava.model.families.llava import IMAGE_TOKEN, LlavaSquareProcessor, square_image_processor
from llava.model.projector import STRATEGIES, VisionFeatures, projector_for, projector_shapes, text_of, vision_of
from llava.model.projector_file import read_projector
from llava.model.tokenizer import load_tokenizer
from llava.model.upstream import attention_of, llava_shell, save_under_hub_names

PAD_TOKEN = "<pad>"
VOCAB_MULTIPLE = 64
LANGUAGE_TYPES = ("llama", "mistral")
_VISION_TYPES = ("clip", "clip_vision_model")
LLAVA_FEATURES = VisionFeatures()
"""LLaVA-1.5's own: patches of the tower's last layer but one, through two linear layers."""

Folder = str | os.PathLike[str]


def llava_config(
    language_model: Folder,
    vision_tower: Folder,
    features: VisionFeatures = LLAVA_FEATURES,
) -> LlavaConfig:
    """The configuration of a LLaVA made of these parts. Raises ValueError where they do not fit."""
    text = _typed_config(language_model, LANGUAGE_TYPES, "language model")
    vision = _typed_config(vision_tower, _VISION_TYPES, "vision tower")
    vision = getattr(vision, "vision_config", vision)
    if features.feature not in STRATEGIES:
        raise ValueError(f"unknown vision feature {features.feature!r}; known: {', '.join(STRATEGIES)}")
    layers = vision.num_hidden_layers
    if not -layers - 1 <= features.layer <= layers:
        raise ValueError(f"{vision_tower}: layer {features.layer} is outside its {layers} layers")
    projector_shapes(features.projector_type, vision.hidden_size, text.hidden_size)
    return wrap_config(text, vision, text.vocab_size, features)


def wrap_config(
    text: PretrainedConfig,
    vision: PretrainedConfig,
    image_token_id: int,
    features: VisionFeatures = LLAVA_FEATURES,
) -> LlavaConfig:
    """``LlavaConfig`` over a language model's configuration whose vocabulary is not yet padded."""
    text_values = text.to_dict()
    text_values["vocab_size"] = padded_vocab_size(image_token_id)
    text_values["pad_token_id"] = image_token_id + 1
    patches = (vision.image_size // vision.patch_size) ** 2
    config = LlavaConfig(
        text_config=type(text).from_dict(text_values),
        vision_config=vision,
        image_token_index=image_token_id,
        image_seq_length=patches + (features.feature == "cls_patch"),
        projector_hidden_act="gelu",
        vision_feature_layer=features.layer,
        vision_feature_select_strategy=STRATEGIES[features.feature],  # type: ignore[arg-type]
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.pad_token_id = image_token_id + 1
    config.mm_projector_type = features.projector_type
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def build_llava(
    language_model: Folder,
    vision_tower: Folder,
    features: VisionFeatures = LLAVA_FEATURES,
    projector_file: Folder | None = None,
    pad_images: bool = True,
    template: str = "v1",
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **language_kwargs: Any,
) -> tuple[LlavaForConditionalGeneration, LlavaSquareProcessor]:
    """A LLaVA of these parts on the CPU, and its processor.

    Args:
        language_model: folder of a Llama or Vicuna type causal language model with its tokenizer.
        vision_tower: folder of a CLIP model or CLIP vision model.
        features: what is read of the tower, and the projector's type.
        projector_file: ``mm_projector.bin`` to start the projector from; drawn at random if None.
        pad_images: pad to a square with the mean colour; False crops the middle.
        language_kwargs: go to the language model's ``from_pretrained``.

    Raises:
        ValueError: a part is of another kind, or the shapes do not fit; before weights are loaded.
    """
    config = llava_config(language_model, vision_tower, features)
    widths = vision_of(config).hidden_size, text_of(config).hidden_size
    config.mm_vision_tower = str(vision_tower)  # where a conversion back compares the tower with
    trained = None if projector_file is None else read_projector(projector_file, features.projector_type, *widths)
    tokenizer = load_base_tokenizer(language_model, config.image_token_index)

    language = AutoModelForCausalLM.from_pretrained(
        language_model, dtype=dtype, attn_implementation=attn_implementation, **language_kwargs
    )
    tower = _load_tower(vision_tower, dtype, attn_implementation)
    model = _assemble(config, language, tower, dtype)
    if trained is not None:
        model.model.multi_modal_projector.load_state_dict(trained)
    model.generation_config = generation_config(config, tokenizer)
    images = square_image_processor(vision_of(config).image_size, pad_images)
    return model, LlavaSquareProcessor(tokenizer, images, config, template)


def padded_vocab_size(image_token_id: int) -> int:
    """Vocabulary rows with ``<image>`` and ``<pad>`` added, up to a multiple of 64 (32,000 → 32,064)."""
    return -(-(image_token_id + 2) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def load_base_tokenizer(folder: Folder, vocab_size: int) -> PreTrainedTokenizerBase:
    """A language model's tokenizer with ``<image>`` and ``<pad>`` added behind its ``vocab_size`` tokens."""
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) != vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the language model {vocab_size} rows")
    added = [AddedToken(token, special=True, normalized=False) for token in (IMAGE_TOKEN, PAD_TOKEN)]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.padding_side = "right"
    return tokenizer


def generation_config(config: LlavaConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy decoding that never gives an added or padding row of the vocabulary."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=config.pad_token_id,
        suppress_tokens=list(range(config.image_token_index, text_of(config).vocab_size)),
    )


def pad_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """``float[V, D]`` with zero rows added up to ``rows``."""
    return torch.cat([weight, weight.new_zeros(rows - weight.shape[0], weight.shape[1])])


def _typed_config(folder: Folder, types: tuple[str, ...], part: str) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no readable {part} configuration ({error})") from error
    if config.model_type not in types:
        raise ValueError(f"{folder}: a {part} must be one of {', '.join(types)}, this is {config.model_type!r}")
    return config


def _load_tower(folder: Folder, dtype: torch.dtype, attn_implementation: str | None) -> CLIPVisionModel:
    loaded: Any = CLIPVisionModel.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
    )
    tower, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"{folder}: the vision tower lacks {sorted(report['missing_keys'])[0]}")
    return tower


def _assemble(
    config: LlavaConfig, language: PreTrainedModel, tower: CLIPVisionModel, dtype: torch.dtype
) -> LlavaForConditionalGeneration:
    config.dtype = dtype
    with projector_for(config):
        model = llava_shell(config, attention_of(language))  # every part is put in below
        projector = type(model.model.multi_modal_projector)(config).to(dtype)
    model.config.name_or_path = language.config.name_or_path  # the base that a LoRA adapter names
    rows = text_of(config).vocab_size
    embedding: Any = language.get_input_embeddings()
    embedding.weight = nn.Parameter(pad_rows(embedding.weight.data, rows))
    embedding.num_embeddings = rows
    head: Any = language.get_output_embeddings()
    head.weight = embedding.weight if config.tie_word_embeddings else nn.Parameter(pad_rows(head.weight.data, rows))
    head.out_features = rows

    language.model.config = model.model.language_model.config
    tower.config = model.model.vision_tower.config
    model.model.language_model, model.lm_head = language.model, head
    model.model.vision_tower, model.model.multi_modal_projector = tower, projector
    save_under_hub_names(model)
    return model.eval()
