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
from transformers.conversion_mapping import get_model_conversion_mapping

from llava.model.families.llava import IMAGE_TOKEN, LlavaSquareProcessor, square_image_processor
from llava.model.projector import STOCK_TYPE, projector_for, projector_shapes, text_of, vision_of
from llava.model.projector_file import read_projector
from llava.model.tokenizer import load_tokenizer

PAD_TOKEN = "<pad>"
VOCAB_MULTIPLE = 64
_LANGUAGE_TYPES = ("llama", "mistral")
_VISION_TYPES = ("clip", "clip_vision_model")
_STRATEGIES = {"patch": "default", "cls_patch": "full"}  # LLaVA's name → transformers'

Folder = str | os.PathLike[str]


def llava_config(
    language_model: Folder,
    vision_tower: Folder,
    projector_type: str = STOCK_TYPE,
    select_layer: int = -2,
    select_feature: str = "patch",
) -> LlavaConfig:
    """The configuration of a LLaVA made of these parts. Raises ValueError where they do not fit."""
    text = _typed_config(language_model, _LANGUAGE_TYPES, "language model")
    vision = _typed_config(vision_tower, _VISION_TYPES, "vision tower")
    vision = getattr(vision, "vision_config", vision)
    if select_feature not in _STRATEGIES:
        raise ValueError(f"unknown vision feature {select_feature!r}; known: {', '.join(_STRATEGIES)}")
    layers = vision.num_hidden_layers
    if not -layers - 1 <= select_layer <= layers:
        raise ValueError(f"{vision_tower}: layer {select_layer} is outside its {layers} layers")
    projector_shapes(projector_type, vision.hidden_size, text.hidden_size)
    return wrap_config(text, vision, text.vocab_size, projector_type, select_layer, select_feature)


def wrap_config(
    text: PretrainedConfig,
    vision: PretrainedConfig,
    image_token_id: int,
    projector_type: str = STOCK_TYPE,
    select_layer: int = -2,
    select_feature: str = "patch",
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
        image_seq_length=patches + (select_feature == "cls_patch"),
        projector_hidden_act="gelu",
        vision_feature_layer=select_layer,
        vision_feature_select_strategy=_STRATEGIES[select_feature],  # type: ignore[arg-type]
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.pad_token_id = image_token_id + 1
    config.mm_projector_type = projector_type
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def build_llava(
    language_model: Folder,
    vision_tower: Folder,
    projector_type: str = STOCK_TYPE,
    select_layer: int = -2,
    select_feature: str = "patch",
    adapter: Folder | None = None,
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
        projector_type: identity, linear or mlpNx_gelu.
        select_layer: which hidden state of the tower is read (LLaVA: -2).
        select_feature: "patch", or "cls_patch" to keep the class token.
        adapter: ``mm_projector.bin`` to start the projector from; drawn at random if None.
        pad_images: pad to a square with the mean colour; False crops the middle.
        language_kwargs: go to the language model's ``from_pretrained``.

    Raises:
        ValueError: a part is of another kind, or the shapes do not fit; before weights are loaded.
    """
    config = llava_config(language_model, vision_tower, projector_type, select_layer, select_feature)
    widths = vision_of(config).hidden_size, text_of(config).hidden_size
    config.mm_vision_tower = str(vision_tower)  # where a conversion back compares the tower with
    trained = read_projector(adapter, projector_type, *widths) if adapter is not None else None
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


def select_feature_of(config: LlavaConfig) -> str:
    """LLaVA's name for what is read from the tower: "patch" or "cls_patch"."""
    return {theirs: name for name, theirs in _STRATEGIES.items()}[config.vision_feature_select_strategy]


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
        with torch.device("meta"):  # only the shell: every part is put in below
            model = LlavaForConditionalGeneration._from_config(
                config, attn_implementation=language.config._attn_implementation
            )
        projector = type(model.model.multi_modal_projector)(config).to(dtype)
    model.config._name_or_path = language.config._name_or_path  # the base that a LoRA adapter names
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
    # a model that was not loaded would be saved without the tower's "vision_model." prefix, which published
    # checkpoints have and other engines look for
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
    return model.eval()
