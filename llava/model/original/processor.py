"""Original LLaVA's processor and tokenizer against ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import LlavaConfig

from llava.model.assemble import load_base_tokenizer
from llava.model.families.llava import LlavaSquareProcessor, square_image_processor
from llava.model.original.names import read_config
from llava.model.projector import vision_of
from llava.model.tokenizer import SENTENCEPIECE_FILE, read_sentencepiece, sentencepiece_file


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
