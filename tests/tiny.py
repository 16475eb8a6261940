"""Complete tiny checkpoints for tests: real classes, real tokenizers, a few thousand parameters beside the vocabulary.

``<image>`` takes 4 tokens in the tiny LLaVA (28 × 28 pixels, patches of 14).
"""

import importlib.resources
import json
import shutil
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava.model.build import build_llava

HIDDEN = 32
VISION_HIDDEN = 24


def sentencepiece_file() -> Path:
    """A Llama-type sentencepiece model of 32,000 tokens."""
    return Path(str(importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"))


def tiny_language_model(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, legacy: bool = True) -> Path:
    """A Llama of two layers with a sentencepiece tokenizer, as a Vicuna folder holds them."""
    folder = Path(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.2,  # logits that differ, so that a wrong weight shows
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    shutil.copy(sentencepiece_file(), folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 2048}))
    return folder


def tiny_clip(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 1) -> Path:
    """A CLIP vision tower of three layers, 28 × 28 pixels, patches of 14."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=VISION_HIDDEN,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        initializer_range=0.2,
        initializer_factor=5.0,
    )
    CLIPVisionModel(config).to(dtype).save_pretrained(folder)
    return Path(folder)


def tiny_llava(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **build_kwargs: object) -> Path:
    """A LLaVA built of the two above; ``build_kwargs`` go to ``build_llava``."""
    folder = Path(folder)
    language = tiny_language_model(folder / "parts" / "language", dtype, seed)
    tower = tiny_clip(folder / "parts" / "clip", dtype, seed + 1)
    torch.manual_seed(seed + 2)
    model, processor = build_llava(language, tower, dtype=dtype, **build_kwargs)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    shutil.rmtree(folder / "parts")
    return folder
