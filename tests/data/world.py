"""Processors without models, and small data sets on disk."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from llava.data.index import build_index
from llava.data.index_rows import IndexSettings
from llava.model.assemble import load_base_tokenizer
from llava.model.families.llava import LlavaSquareProcessor, square_image_processor
from llava.model.families.qwen2_vl import QwenProcessor
from tests.tiny import sentencepiece_file, tiny_qwen_tokenizer

IMAGE_TOKENS = 4  # 28 × 28 pixels, patches of 14


def llama_tokenizer(folder: Path, legacy: bool) -> PreTrainedTokenizerBase:
    """A tokenizer as Vicuna's folder has it, with LLaVA's two additions."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(sentencepiece_file(), folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_base_tokenizer(folder, 32000)
    assert tokenizer.legacy is legacy
    return tokenizer


def llava_processor(folder: Path, legacy: bool = True) -> LlavaSquareProcessor:
    tokenizer = llama_tokenizer(folder, legacy)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=28, patch_size=14),
        text_config=LlamaConfig(vocab_size=32064),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return LlavaSquareProcessor(tokenizer, square_image_processor(28), config)


def qwen_processor() -> QwenProcessor:
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16})
    return QwenProcessor(tiny_qwen_tokenizer(), images)


def save_image(path: Path, height: int = 20, width: int = 30, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def record(
    *texts: str, record_id: str = "r", task: str | None = "vqa", image: str | list[str] | None = None
) -> dict[str, Any]:
    """A record whose turns alternate human and gpt."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    content: dict[str, Any] = {"id": record_id, "conversations": turns}
    return content | ({} if task is None else {"task": task}) | ({} if image is None else {"image": image})


def write_json(path: Path, records: Sequence[Any], lines: bool = False) -> Path:
    text = "\n".join(json.dumps(one) for one in records) if lines else json.dumps(records, indent=1)
    path.write_text(text)
    return path


def index(tmp_path: Path, records: Sequence[Any], processor: Any, **changed: Any) -> Path:
    """Index `records` with images from `tmp_path`/images."""
    (tmp_path / "images").mkdir(exist_ok=True)
    how = {
        "data_paths": [write_json(tmp_path / "data.json", records)],
        "image_folder": tmp_path / "images",
        "task_names": ("vqa", "caption", "chat"),
        "processor": processor,
        "template": processor.default_template,
        "model_max_length": 256,
        "cache_dir": tmp_path / "cache",
    } | changed
    shaping = {field.name: how.pop(field.name) for field in fields(IndexSettings) if field.name in how}
    return build_index(settings=IndexSettings(**shaping), **how)


GOOD = record("<image>\nWhat?", "A cat.", record_id="good", image="a.png")


def bad_image(path):
    return record("<image>\nWhat?", "A cat.", record_id="bad", image=path)


def turns(*pairs):
    return {"id": "bad", "task": "vqa", "conversations": [{"from": who, "value": text} for who, text in pairs]}
