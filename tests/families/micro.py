"""Micro models of image-text families: random weights, real model and processor classes, templates as published.

A family is one entry of `tests.families.table`. Nothing is downloaded: each folder is written as a published one is,
from a small configuration, the family's own processor class with a small tokenizer, and a chat template that works as
the published one does (written anew).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES


@dataclass(frozen=True)
class Micro:
    """One family.

    Attributes:
        config: `(token → id) → {part: settings}`, the configuration in small.
        image_processor: makes the family's image processor, for small images.
        template: a chat template that works as the published one.
        specials: special tokens of the tokenizer; `named` ones become attributes of it.
        settings: the processor's own settings.
        bos: the beginning token; `adds_bos`: the tokenizer puts it before every text.
        eos: the tokenizer's end token; `ends`: what ends an answer by the generation settings, if not that alone.
        target_end: what training teaches to end an answer with.
        thought: what a template writes before the last answer, which is then part of it.
        experts: the model has experts.
        needs: a library without which the family's processor does not exist.
        title: models of this kind, for people.
    """

    title: str
    model_type: str
    config: Callable[[Callable[[str], int]], dict[str, Any]]
    image_processor: Callable[[], Any]
    template: str
    specials: Sequence[str]
    named: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    bos: str | None = None
    adds_bos: bool = False
    eos: str = "<|im_end|>"
    ends: Sequence[str] = ()
    target_end: str = "<|im_end|>"
    thought: str = ""
    experts: bool = False
    needs: str | None = None


@cache
def _trained() -> str:
    trained = ByteLevelBPETokenizer()
    sentences = ["The answer to the question is shown in the image.", "What is this? a small red square, 3 of 12."] * 3
    trained.train_from_iterator(sentences, vocab_size=400, show_progress=False)
    return trained.to_str()


def micro_tokenizer(family: Micro) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few sentences, with the family's special tokens and template."""
    backend = Tokenizer.from_str(_trained())
    tokens = list(dict.fromkeys([*family.specials, *family.named.values(), *([family.bos] if family.bos else [])]))
    backend.add_special_tokens([*tokens, family.eos, "<|pad|>"])
    if family.adds_bos:
        bos = str(family.bos)
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token="<|pad|>",
        extra_special_tokens=family.named or tokens,
        model_max_length=2048,
    )
    tokenizer.chat_template = family.template
    return tokenizer


def make_micro(family: Micro, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write the family's micro model and processor into `folder`."""
    tokenizer = micro_tokenizer(family)

    def token(text: str) -> int:
        found = tokenizer.convert_tokens_to_ids(text)
        assert isinstance(found, int), text
        return found

    values = family.config(token)
    values["text_config"] |= {
        "vocab_size": -(-len(tokenizer) // 64) * 64,  # with rows to spare, as published models have them
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None if family.bos is None else token(family.bos),
        "eos_token_id": token(family.eos),
    }
    config = AutoConfig.for_model(family.model_type, **values)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).to(dtype)
    for parameter in model.parameters():
        if not parameter.any():  # Gemma's projector begins at nought, so that no image would count
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config = GenerationConfig(eos_token_id=[token(end) for end in family.ends or (family.eos,)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    family.image_processor().save_pretrained(folder)
    name = PROCESSOR_MAPPING_NAMES[family.model_type]
    (folder / "processor_config.json").write_text(json.dumps(family.settings | {"processor_class": name}))
    return folder
