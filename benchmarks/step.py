"""One optimizer step of a LLaVA: the stock Trainer without weights against ours with VisATB weights.

Command:  python -m benchmarks.step            (--device cuda on a GPU)
Cost:     about 3 minutes on one core
Result:   benchmarks/results/step.json; the ratio ours ÷ stock, pair by pair in one process, is not above 1
Both train the same model on the same batches with the same optimizer, turn by turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
import transformers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from benchmarks.record import save
from transformers_patch.arguments import VitwTrainingArguments
from transformers_patch.trainer import VitwTrainer

CPU = {"hidden": 256, "layers": 4, "length": 256, "batch": 4, "steps": 3, "pairs": 5}
CUDA = {"hidden": 2048, "layers": 16, "length": 1024, "batch": 8, "steps": 8, "pairs": 7}
IMAGE_TOKEN, IMAGE_TOKENS, VOCAB = 31_999, 16, 32_000
TASKS = ["caption", "vqa"]


def build(sizes: dict[str, int]) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["hidden"] * 8 // 3,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["hidden"] // 64,
    )
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config)


def samples(sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Full-length samples; task 0 answers with 30% of the tokens, task 1 with two tokens."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for i in range(sizes["batch"] * sizes["steps"] * 2):
        ids = torch.randint(1, IMAGE_TOKEN, (sizes["length"],), generator=generator)
        ids[:IMAGE_TOKENS] = IMAGE_TOKEN
        labels = ids.clone()
        labels[: -2 if i % 2 else -(sizes["length"] * 3 // 10)] = -100
        pixels = torch.randn(3, 56, 56, generator=generator)
        result.append({"input_ids": ids, "labels": labels, "pixel_values": pixels, "vitw_task_ids": i % 2})
    return result


def collate(rows: list[dict[str, Any]], tasks: bool) -> dict[str, torch.Tensor]:
    batch = {key: torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels", "pixel_values")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if tasks:
        batch["vitw_task_ids"] = torch.tensor([row["vitw_task_ids"] for row in rows])
    return batch


def make(ours: bool, sizes: dict[str, int], folder: str, cpu: bool) -> Trainer:
    options: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": sizes["batch"],
        "gradient_accumulation_steps": 2,
        "max_steps": sizes["steps"],
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": cpu,
        "bf16": not cpu,
        "logging_steps": 1000,
        "remove_unused_columns": False,
    }
    common: dict[str, Any] = {"model": build(sizes), "train_dataset": samples(sizes)}
    if not ours:
        return Trainer(args=TrainingArguments(**options), data_collator=lambda rows: collate(rows, False), **common)
    args = VitwTrainingArguments(weight_method="VisATB", **options)
    return VitwTrainer(
        args=args,
        task_names=TASKS,
        weighter=args.make_weighter(2, [0.7, 1.3]),
        data_collator=lambda rows: collate(rows, True),
        **common,
    )


def seconds(trainer: Trainer) -> float:
    start = time.perf_counter()
    trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / trainer.args.max_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    cpu = parser.parse_args().device == "cpu"
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sizes = CPU if cpu else CUDA
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: make(name == "ours", sizes, folder, cpu) for name in ("stock", "ours")}
        for trainer in trainers.values():
            trainer.remove_callback(transformers.PrinterCallback)
            seconds(trainer)  # warm up
        pairs = [{name: seconds(trainer) for name, trainer in trainers.items()} for _ in range(sizes["pairs"])]
    ratios = [pair["ours"] / pair["stock"] for pair in pairs]
    figures = {name: statistics.median(pair[name] for pair in pairs) for name in trainers}
    figures |= {"ratio_median": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    print({key: round(value, 3) for key, value in figures.items()})
    print(save("step" if cpu else "step-gpu", figures, unit="seconds per optimizer step", **sizes))


if __name__ == "__main__":
    main()
