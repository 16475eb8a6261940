"""A worker under torchrun: transformers' Trainer with the mix-in, straight through and from a checkpoint in the middle.

Run as `python -m tests.vitw.mixin_ranks FOLDER`; rank 0 leaves both runs' parameters and the steps they took.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PrinterCallback, Trainer, TrainingArguments

from transformers_patch import DynamicWeightAverage, VitwMixin
from transformers_patch.conformance import ANSWERS, micro_model, pad, samples


class WeightedTrainer(VitwMixin, Trainer):
    pass


def trainer(folder: Path) -> WeightedTrainer:
    """Nine steps of 2 processes × 2 micro-batches × 4 of 64 samples: more than two epochs."""
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 9, "learning_rate": 1e-2}
    args = TrainingArguments(
        str(folder), use_cpu=True, save_strategy="steps", save_steps=5, report_to="none", disable_tqdm=True, **split
    )
    weighter = DynamicWeightAverage(len(ANSWERS), window=1)
    made = WeightedTrainer(micro_model(), args, train_dataset=samples(), weighter=weighter, data_collator=pad)
    made.remove_callback(PrinterCallback)
    return made


def main(folder: Path) -> None:
    straight, resumed = trainer(folder), trainer(folder)
    straight.train()
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-5"))
    runs = (straight, resumed)
    if dist.get_rank() == 0:
        found = [torch.cat([p.detach().flatten() for p in run.model.parameters()]) for run in runs]
        weights = [run.weighter.task_weights(9, None).tolist() for run in runs]  # type: ignore[arg-type]
        content = {"parameters": found, "steps": [run.state.global_step for run in runs], "weights": weights}
        torch.save(content, folder / "runs.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
