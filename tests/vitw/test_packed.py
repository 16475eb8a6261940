"""Packed rows give the gradients of unpacked ones, for every family, with several tasks in a row."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AttentionInterface, AttentionMaskInterface

from llava.data.collator import Collator
from llava.data.template import image_ids
from llava.model.family import Processor, family_of
from tests.tiny import tiny_llava, tiny_qwen2_5_vl, tiny_qwen2_vl
from transformers_patch.arguments import VitwTrainingArguments
from transformers_patch.trainer import VitwTrainer

TASKS = ["long", "short", "text"]
MAKERS = {"llava": tiny_llava, "qwen2_vl": tiny_qwen2_vl, "qwen2_5_vl": tiny_qwen2_5_vl}


def samples(processor: Processor, number: int = 24) -> list[dict[str, Any]]:
    """Samples of very different lengths; every third is text alone, some have two images."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(number):
        task = i % 3
        parts, images = [rng.integers(10, 200, 3)], []
        for _ in range(0 if task == 2 else 1 + i % 2):
            image = Image.fromarray(rng.integers(0, 255, (28 * rng.integers(1, 3), 56, 3), dtype=np.uint8))
            count = processor.num_image_tokens(image.height, image.width)
            ids = image_ids(processor)
            place = int(np.flatnonzero(ids == processor.image_token_id)[0])
            parts.append(np.concatenate([ids[:place], np.full(count, ids[place]), ids[place + 1 :]]))
            images.append(image)
        prompt = np.concatenate(parts)
        answer = rng.integers(10, 200, (20, 2, 9)[task])
        result.append(
            {
                "input_ids": torch.as_tensor(np.concatenate([prompt, answer]), dtype=torch.int64),
                "labels": torch.as_tensor(np.concatenate([np.full(len(prompt), -100), answer]), dtype=torch.int64),
                "vitw_task_ids": task,
                **(processor.pixel_inputs(images) if images else {}),
            }
        )
    return result


def variable_length_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """What flash attention's kernels compute, one sample after the other; without boundaries each row is one."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    ends = kwargs.get("cu_seq_lens_q")
    cuts = [0, query.shape[2]] if ends is None else ends.tolist()
    causal = kwargs.get("is_causal", getattr(module, "is_causal", False))
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(part[:, :, start:end] for part in (query, key, value)), is_causal=causal, scale=scaling
        )
        for start, end in itertools.pairwise(cuts)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register("varlen_stand_in", variable_length_attention)
AttentionMaskInterface.register("varlen_stand_in", lambda *_, **__: None)  # padding is told by the boundaries alone


def train(
    folder: Path, out: Path, packing: bool, flash: bool = False, **options: Any
) -> tuple[dict[str, torch.Tensor], VitwTrainer]:
    family = family_of(folder)
    processor = family.load_processor(folder)
    attention = {"text_config": "varlen_stand_in"} if flash else None
    args = VitwTrainingArguments(
        output_dir=str(out),
        weight_method="VisATB",
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        max_steps=3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer = VitwTrainer(
        family.load_model(folder, dtype=torch.float64, attn_implementation=attention),  # type: ignore[arg-type]
        args,
        task_names=TASKS,
        weighter=args.make_weighter(3, [0.5, 2.0, 1.5]),
        train_dataset=samples(processor),
        data_collator=Collator(processor, model_max_length=64, packing=packing, variable_length=flash),
    )
    trainer.train()
    return {n: p.detach() for n, p in trainer.model.named_parameters()}, trainer


@pytest.mark.parametrize("flash", [False, True], ids=["sdpa", "flash"])
@pytest.mark.parametrize("family", MAKERS)
def test_packed_training_equals_unpacked(family, flash, tmp_path):
    folder = MAKERS[family](tmp_path / "model")
    unpacked, _ = train(folder, tmp_path / "a", packing=False)
    packed, trainer = train(folder, tmp_path / "b", packing=True, flash=flash)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    assert batch["input_ids"].shape[0] < 8
    assert any(len(set(row.tolist())) > 1 for row in batch["vitw_task_ids"])
    assert max((packed[n] - unpacked[n]).abs().max().item() for n in packed) < 1e-9


def test_flash_attention_gets_one_row_with_the_boundaries_of_its_samples(tmp_path):
    processor = family_of(folder := tiny_llava(tmp_path / "model")).load_processor(folder)
    data = samples(processor, 5)
    batch = Collator(processor, 64, packing=True, variable_length=True)(data)
    lengths = sorted((len(sample["input_ids"]) for sample in data), reverse=True)
    assert batch["input_ids"].shape == (1, sum(lengths))
    assert batch["cu_seq_lens_q"].tolist() == [0, *np.cumsum(lengths)]
    assert (batch["cu_seq_lens_q"].dtype, batch["max_length_q"]) == (torch.int32, lengths[0])
    starts = batch["cu_seq_lens_k"][:-1].long()
    assert batch["position_ids"][0, starts].tolist() == [0] * 5


def test_packed_rows_leak_without_the_forward_patch(tmp_path):
    """Why the patched forward switches the cache off: stock forward with a cache mixes the samples of a row."""
    folder = tiny_llava(tmp_path / "model")
    family = family_of(folder)
    processor = family.load_processor(folder)
    model = family.load_model(folder, dtype=torch.float64)
    data = samples(processor, 3)
    batch = Collator(processor, model_max_length=128, packing=True)(data)
    batch.pop("vitw_task_ids")
    batch.pop("labels")
    second = [row for row in data if len(row["input_ids"]) < max(len(s["input_ids"]) for s in data)]
    alone = model(
        **{k: v for k, v in Collator(processor, 128)([second[0]]).items() if k not in ("labels", "vitw_task_ids")}
    )
    row = batch["input_ids"][0].tolist()
    start = next(
        i for i in range(len(row)) if row[i : i + len(second[0]["input_ids"])] == second[0]["input_ids"].tolist()
    )
    size = len(second[0]["input_ids"])
    difference = {}
    for use_cache in (True, False):
        logits = model(**batch, use_cache=use_cache).logits[0, start : start + size]
        difference[use_cache] = (logits - alone.logits[0, :size]).abs().max().item()
    assert difference[False] < 1e-9
    assert difference[True] > 1e-3
