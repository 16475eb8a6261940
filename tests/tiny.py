"""Complete tiny checkpoints for tests: real classes, real tokenizers, a few thousand parameters beside the vocabulary.

``<image>`` takes 4 tokens in the tiny LLaVA (28 × 28 pixels, patches of 14).
"""

import importlib.resources
import json
import shutil
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from llava.model.assemble import build_llava
from llava.model.families.qwen2_vl import QwenProcessor

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


QWEN_SPECIALS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    "initializer_range": 0.2,
}


def tiny_qwen_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE trained on a few sentences, with Qwen's special tokens and a ChatML template."""
    trained = ByteLevelBPETokenizer()
    sentences = ["The answer to the question is shown in the image.", "What is this? a small red square, 3 of 12."] * 3
    trained.train_from_iterator(sentences, vocab_size=400, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=list(QWEN_SPECIALS),
        model_max_length=2048,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _save_qwen(
    folder: Path, model_class: type[PreTrainedModel], config_class: type, vision: dict, dtype: torch.dtype, seed: int
) -> Path:
    tokenizer = tiny_qwen_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIALS}
    text = _QWEN_TEXT | {"vocab_size": -(-len(tokenizer) // 64) * 64, "eos_token_id": ids["<|im_end|>"]}
    config = config_class(
        text_config=text | {"bos_token_id": None, "pad_token_id": tokenizer.pad_token_id},
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(seed)
    model_class(config).to(dtype).save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16})
    QwenProcessor(tokenizer, images).save_pretrained(folder)
    return Path(folder)


def tiny_qwen2_vl(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A Qwen2-VL of two layers each side; an image takes 1 to 16 tokens of 28 × 28 pixels."""
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": HIDDEN, "num_heads": 2, "initializer_range": 0.2}
    return _save_qwen(folder, Qwen2VLForConditionalGeneration, Qwen2VLConfig, vision, dtype, seed)


def tiny_qwen2_5_vl(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A Qwen2.5-VL of two layers each side, the second with full attention."""
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": HIDDEN, "intermediate_size": 24, "num_heads": 2}
    vision |= {"fullatt_block_indexes": [1], "window_size": 56, "initializer_range": 0.2}
    return _save_qwen(folder, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, vision, dtype, seed)
