"""A tiny LLaVA, five tasks of very different answer lengths (one without images), and one way to train on them.

Everything is made in memory from seeds, so that processes of a distributed run build the same.
Run as a worker under torchrun: `python -m tests.vitw.workbench JOBS.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from peft import LoraConfig, get_peft_model
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PrinterCallback,
    TrainerCallback,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from transformers_patch.arguments import VitwTrainingArguments
from transformers_patch.checkpoint import DivergedError, last_complete_checkpoint
from transformers_patch.sampler import WeightedOrder
from transformers_patch.trainer import VitwTrainer

ROOT = Path(__file__).parents[2]
TASKS = ["caption", "region", "vqa", "chart", "chat"]
ANSWER_LENGTHS = [(24, 40), (6, 12), (1, 2), (1, 4), (12, 60)]
IMAGE_TOKEN, IMAGE_TOKENS, VOCAB = 63, 4, 64
DTYPE = torch.float64
METHODS = ["EW", "TLA", "RLW", "DWA", "IGB", "VisATB"]
GIVEN = [0.8585, 1.0557, 0.8107, 1.0020, 1.6403]


def tiny_model(dtype: torch.dtype = torch.float64, seed: int = 0) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).to(dtype)


class Samples(torch.utils.data.Dataset):
    """`num_samples` records; task k has answers of ANSWER_LENGTHS[k] tokens, the last task no image; the image
    of sample `poison` is NaN."""

    def __init__(
        self, num_samples: int, dtype: torch.dtype = torch.float64, seed: int = 1, poison: int | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        self.samples = [self._sample(rng, dtype) for _ in range(num_samples)]
        if poison is not None:
            self.samples[poison]["pixel_values"] *= float("nan")

    @staticmethod
    def _sample(rng: np.random.Generator, dtype: torch.dtype) -> dict[str, Any]:
        task = int(rng.choice(len(TASKS), p=[0.2, 0.2, 0.35, 0.1, 0.15]))
        # Each task has words of its own, so that losses fall, and at different rates.
        words = 1 + 12 * task + np.arange(2 + 2 * task)
        answer = rng.choice(words, rng.integers(*ANSWER_LENGTHS[task], endpoint=True))
        prompt = rng.integers(1, IMAGE_TOKEN, rng.integers(2, 6))
        sample: dict[str, Any] = {"vitw_task_ids": task}
        if task != len(TASKS) - 1:
            prompt = np.concatenate([np.full(IMAGE_TOKENS, IMAGE_TOKEN), prompt])
            sample["pixel_values"] = torch.as_tensor(rng.standard_normal((1, 3, 8, 8)), dtype=dtype)
        sample["input_ids"] = torch.as_tensor(np.concatenate([prompt, answer]))
        sample["labels"] = torch.as_tensor(np.concatenate([np.full(len(prompt), -100), answer]))
        return sample

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index]


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Right-padded batch; a batch without images gets one ignored row with a blank image."""
    if not any("pixel_values" in sample for sample in samples):
        ids = torch.full((IMAGE_TOKENS,), IMAGE_TOKEN)
        blank = {"input_ids": ids, "labels": torch.full_like(ids, -100), "vitw_task_ids": 0}
        samples = [*samples, {**blank, "pixel_values": torch.zeros(1, 3, 8, 8, dtype=DTYPE)}]

    def pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return {
        "input_ids": pad([s["input_ids"] for s in samples], 0),
        "labels": pad([s["labels"] for s in samples], -100),
        "attention_mask": pad([torch.ones_like(s["input_ids"]) for s in samples], 0),
        "pixel_values": torch.cat([s["pixel_values"] for s in samples if "pixel_values" in s]),
        "vitw_task_ids": torch.tensor([s["vitw_task_ids"] for s in samples]),
    }


def lora(model: LlavaForConditionalGeneration) -> torch.nn.Module:
    torch.manual_seed(7)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)",
        modules_to_save=["multi_modal_projector"],
    )
    return get_peft_model(model, config)


def drawn_order(samples: Samples, step_size: int) -> WeightedOrder:
    """Samples drawn by GIVEN."""
    tokens = [int((sample["labels"][1:] != -100).sum()) for sample in samples]
    return WeightedOrder(GIVEN, [sample["vitw_task_ids"] for sample in samples], tokens, step_size, seed=3)


def trainer(output_dir: str | Path, method: str = "EW", **options: Any) -> VitwTrainer:
    """Return a trainer of `options` (`samples`, `lora`, `float32`, `sampled` by GIVEN, and any training argument)."""
    global DTYPE
    DTYPE = torch.float32 if options.pop("float32", False) else torch.float64
    num_samples, use_lora = options.pop("samples", 128), options.pop("lora", False)
    units, poison = options.pop("task_units", None), options.pop("poison", None)
    sampled = options.pop("sampled", False)
    arguments: dict[str, Any] = {
        "output_dir": str(output_dir),
        "weight_method": method,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "num_train_epochs": 4,
        "max_steps": 8,
        "dwa_window": 1,
        "igb_window": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    model = tiny_model(DTYPE)  # before the arguments: with ZeRO-3 in them, new models are born partitioned
    args = VitwTrainingArguments(**{**arguments, **options})
    num_units = len(TASKS) if units is None else max(units) + 1
    weights = GIVEN[:num_units] if method == "VisATB" else None
    transformers.logging.set_verbosity_error()
    train_set = Samples(num_samples, DTYPE, poison=poison)
    engine = VitwTrainer(
        lora(model) if use_lora else model,
        args,
        task_names=TASKS,
        weighter=args.make_weighter(num_units, weights),
        task_units=units,
        train_dataset=train_set,
        train_order=drawn_order(train_set, args.samples_per_step) if sampled else None,
        eval_dataset=Samples(13, DTYPE, seed=2),
        data_collator=collate,
    )
    engine.remove_callback(PrinterCallback)
    return engine


class StopAt(TrainerCallback):
    """Requests preemption so that the run stops after optimizer step `step`."""

    def __init__(self, engine: VitwTrainer, step: int) -> None:
        self.engine, self.step = engine, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.engine.preemption.requested = state.global_step == self.step - 1


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def run(
    output_dir: str | Path, method: str, resume: bool = False, stop_at: int | None = None, **options: Any
) -> VitwTrainer:
    """Train; `stop_at` asks one rank to stop in that step, as SIGTERM would; `resume` goes on from the folder."""
    engine = trainer(output_dir, method, **options)
    if stop_at is not None and engine.is_world_process_zero():
        engine.add_callback(StopAt(engine, stop_at))
    engine.train(resume_from_checkpoint=last_complete_checkpoint(output_dir) if resume else None)
    return engine


def launch(tmp_path: Path, jobs: list[dict[str, Any]], processes: int = 2) -> None:
    """Run jobs (see `worker`) in so many processes."""
    for job in jobs:
        Path(job["output_dir"]).mkdir(parents=True, exist_ok=True)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, "-m", "tests.vitw.workbench", str(tmp_path / "jobs.json")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-12000:]


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """DeepSpeed's settings for ZeRO of a stage; `more` of its own part."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, **more},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def worker(jobs_file: str) -> None:
    """Run each job {"output_dir", "method", …}; rank 0 leaves parameters and the log in its folder.

    Of a job that diverges every rank leaves the message.
    """
    for job in json.loads(Path(jobs_file).read_text()):
        folder = Path(job["output_dir"])
        try:
            engine = run(**job)
        except DivergedError as error:
            (folder / f"diverged-{dist.get_rank()}.txt").write_text(str(error))
            unset_hf_deepspeed_config()
            continue
        if engine.is_deepspeed_enabled:
            state = engine.accelerator.get_state_dict(engine.model_wrapped)
        else:
            state = parameters(engine.model)
        if engine.is_world_process_zero():
            torch.save(state, folder / "parameters.pt")
            (folder / "log.json").write_text(json.dumps(engine.state.log_history))
        unset_hf_deepspeed_config()  # else the next job's model is born partitioned too


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(sys.argv[1])
