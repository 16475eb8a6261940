"""Pictures in TRL: its own image-text collator and the guide's example, against one big batch written out."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("trl")

from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples/tiny/base"
WEIGHTS = {"caption": 0.6, "vqa": 1.4}


def pictures(number: int = 16) -> Dataset:
    """Every third picture has a caption of eight to ten words, the others an answer of one."""
    rows = []
    for i in range(number):
        task = ("vqa", "caption", "vqa")[i % 3]
        words = ["red", "blue", "green", "circle", "square", "big", "small", "left", "right", "of"]
        answer = words[i % 5] if task == "vqa" else " ".join(words[: 8 + i % 3])
        image = Image.new("RGB", (48, 48), (40 * i % 256, 90, 20 * i % 256))
        image.paste((250, 250, 90), (i, i, i + 12, i + 16))
        prompt = f"[INST] <image> what is {'this' if task == 'caption' else 'here'} ? [/INST]"
        rows.append({"images": [image], "prompt": prompt, "completion": f" {answer} </s>", "task": task})
    return Dataset.from_list(rows)


def one_big_batch(model: Any, processor: Any, rows: list[dict[str, Any]], rate: float) -> dict[str, torch.Tensor]:
    """All parameters after one step of plain gradient descent on one batch, Equation 2 written out."""
    total = divisor = torch.zeros(())
    for row in rows:
        texts = [row["prompt"], row["prompt"] + row["completion"]]
        # As TRL's collator has it: the prompt's text says itself where it begins.
        plain = {
            "images": row["images"],
            "return_tensors": "pt",
            "add_special_tokens": False,
        }
        asked, whole = (processor(text=text, **plain) for text in texts)
        start = asked["input_ids"].shape[1]
        assert torch.equal(whole["input_ids"][:, :start], asked["input_ids"])
        scores = model(**whole).logits[0, start - 1 : -1]
        losses = F.cross_entropy(scores, whole["input_ids"][0, start:], reduction="none")
        total = total + WEIGHTS[row["task"]] * losses.sum()
        divisor = divisor + WEIGHTS[row["task"]] * len(losses)
    (total / divisor).backward()
    return {name: (p - rate * p.grad).detach() for name, p in model.named_parameters() if p.grad is not None}


def test_the_example_of_the_guide_is_exact_with_pictures(tmp_path):
    """Four micro-batches of four, in float32, equal one big batch to 1e-6; the collator is TRL's."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/trainers.md").read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(code, "trainers.md", "exec"), names)  # our own page
    processor = AutoProcessor.from_pretrained(BASE, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    start = copy.deepcopy(model)
    (tmp_path / "weights.json").write_text(json.dumps({"tasks": list(WEIGHTS), "weights": WEIGHTS}))
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "optim": "sgd", "max_steps": 1}
    settings |= {"learning_rate": 0.1, "max_grad_norm": 0.0, "use_cpu": True, "bf16": False, "max_length": None}
    settings |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    settings |= {"gradient_checkpointing": False}
    trainer = names["train"](model, processor, pictures(), tmp_path / "weights.json", tmp_path / "out", **settings)
    assert isinstance(trainer.data_collator.collator, DataCollatorForVisionLanguageModeling)
    expected = one_big_batch(start, processor, list(pictures()), 0.1)
    found = dict(trainer.model.named_parameters())
    assert any("vision_tower" in name for name in expected)
    assert max((found[name] - value).abs().max().item() for name, value in expected.items()) < 1e-6
    before = dict(start.named_parameters())
    assert max((found[name] - before[name]).abs().max().item() for name in expected) > 1e-3
    log = trainer.state.log_history[0]
    assert {task: log[f"task_weight/{task}"] for task in WEIGHTS} == WEIGHTS
