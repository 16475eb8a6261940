"""What the mix-in adds to a step of TRL's SFTTrainer: CPU seconds with it over those without, turn by turn.

Command:  python -m benchmarks.mixin
Cost:     about 5 CPU minutes on one core
Result:   benchmarks/results/mixin.json. `full`: all logits are computed as in the stock step, so that the ratio is the
          mix-in's own work (counting, the divisor, the log); `auto`: what a user gets, valid targets only.
Each pair trains the same model for the same steps, first one and then the other; a ratio is that of one pair.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.record import save
from transformers_patch import VitwMixin, WeightingArguments
from transformers_patch.conformance import ANSWERS, WEIGHTS, word_tokenizer

VOCAB, HIDDEN, LAYERS, BATCH, ACCUMULATION, STEPS = 8_000, 256, 4, 4, 2, 4


class Weighted(VitwMixin, SFTTrainer):
    pass


@dataclass
class WeightedConfig(WeightingArguments, SFTConfig):
    pass


def samples() -> Dataset:
    """128 tokens each, of which a fifth to a half are targets."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(BATCH * ACCUMULATION * STEPS):
        ids = rng.integers(4, VOCAB, 128).tolist()
        prompt = int(rng.integers(64, 102))
        labels = [-100] * prompt + ids[prompt:]
        rows.append({"input_ids": ids, "labels": labels, "task": list(ANSWERS)[number % 3]})
    return Dataset.from_list(rows)


def seconds(kind: str) -> float:
    """CPU seconds of the training loop: `stock`, or the mix-in with its `loss_impl` full or auto."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN, "num_hidden_layers": LAYERS}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_attention_heads=4, **sizes))
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": ACCUMULATION,
            "max_steps": STEPS,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "max_length": None,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
        }
        rest: dict[str, Any] = {"train_dataset": samples(), "processing_class": word_tokenizer()}
        if kind == "stock":
            trainer: SFTTrainer = SFTTrainer(model, SFTConfig(**options), **rest)
        else:
            trainer = Weighted(model, WeightedConfig(loss_impl=kind, **options), weighter=WEIGHTS, **rest)
        trainer.remove_callback(PrinterCallback)
        begin = time.process_time()
        trainer.train()
        return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    seconds("stock")  # what the first run alone has to do
    turns = [{kind: seconds(kind) for kind in ("stock", "full", "auto")} for _ in range(args.pairs)]
    figures: dict[str, Any] = {"stock_seconds": [round(turn["stock"], 3) for turn in turns]}
    for kind in ("full", "auto"):
        ratios = sorted(turn[kind] / turn["stock"] for turn in turns)
        figures[kind] = {"median": statistics.median(ratios), "ratios": [round(ratio, 4) for ratio in ratios]}
    sizes = {
        "vocabulary": VOCAB,
        "hidden": HIDDEN,
        "layers": LAYERS,
        "micro_batch": BATCH,
        "accumulation": ACCUMULATION,
    }
    print(save("mixin", figures, steps=STEPS, tokens=128, **sizes).read_text())


if __name__ == "__main__":
    main()
