"""How far a Trainer's gradient is from that of one big batch, however the batch is cut.

    python -m transformers_patch.conformance ours trainer trl trl-stock my_module:my_factory [--output FILE.json]

The same 64 samples of three tasks, with answers of very different length, go through one optimizer step of a random
micro Llama in float64: as 1 × 64 (micro-batches × samples), 4 × 16, 16 × 4, and on two processes as 4 × 8 each. The
gradient g before the optimizer's step is compared with g* of a plain loop over one batch (Equation 2): the table gives
‖g − g*‖ / ‖g*‖ over all parameters, with equal weights and with given ones.

A Trainer of your own is named as MODULE:FUNCTION, where

    FUNCTION(model, dataset, weights, options) → Trainer

gets the model, a data set with the columns `input_ids`, `labels` and `task`, λ by task (None: equal weights) and the
options of `TrainingArguments`, all of which must be used. It raises `NoWeights` where weights cannot be given.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback

from eval.files import write_text
from transformers_patch.arguments import VitwTrainingArguments
from transformers_patch.loss import IGNORE_INDEX
from transformers_patch.mixin import VitwMixin
from transformers_patch.tasks import TaskCollator
from transformers_patch.trainer import VitwTrainer

Factory = Callable[[nn.Module, Dataset, Mapping[str, float] | None, dict[str, Any]], Trainer]

WEIGHTS = {"caption": 0.55, "chart": 1.6, "vqa": 0.85}
ANSWERS = {"caption": (24, 41), "chart": (3, 9), "vqa": (1, 3)}
"""Task → the number of its answers' tokens, from and below."""
SAMPLES, VOCABULARY = 64, 64
SPLITS = {"1 x 64": (64, 1), "4 x 16": (16, 4), "16 x 4": (4, 16)}
"""On one process: samples of a micro-batch, micro-batches."""
TWO = "2 processes"
PACKAGES = ("torch", "transformers", "accelerate", "trl")


class NoWeights(ValueError):  # noqa: N818 - an answer rather than an error
    """The Trainer has no place for task weights."""


def micro_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A Llama of two layers with random weights, the same ones each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.to(dtype)


def samples() -> Dataset:
    """64 samples with the columns `input_ids`, `labels` (prompt ignored) and `task`."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(SAMPLES):
        task = list(ANSWERS)[number % 3]
        prompt = rng.integers(4, VOCABULARY, rng.integers(2, 6)).tolist()
        answer = rng.integers(4, VOCABULARY, rng.integers(*ANSWERS[task])).tolist()
        labels = [IGNORE_INDEX] * len(prompt) + answer
        rows.append({"input_ids": prompt + answer, "labels": labels, "task": task})
    return Dataset.from_list(rows)


def pad(rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `labels` and `attention_mask` of samples."""

    def column(name: str, value: int) -> Tensor:
        parts = [torch.as_tensor(row[name]) for row in rows]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    ones = [{"mask": torch.ones(len(row["input_ids"]), dtype=torch.int64)} for row in rows]
    mask = nn.utils.rnn.pad_sequence([row["mask"] for row in ones], batch_first=True)
    return {"input_ids": column("input_ids", 0), "labels": column("labels", IGNORE_INDEX), "attention_mask": mask}


def reference(weights: Mapping[str, float] | None) -> dict[str, Tensor]:
    """g* by parameter name: Equation 2 over all samples as one batch in float64, from the stock model's logits."""
    model, rows = micro_model(), list(samples())
    batch = pad(rows)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    of_rows = torch.tensor([1.0 if weights is None else weights[row["task"]] for row in rows], dtype=torch.float64)
    of_tokens = of_rows[:, None] * (targets != IGNORE_INDEX)
    ((of_tokens * losses).sum() / of_tokens.sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


class _Keep(TrainerCallback):
    """Keeps the gradients that the optimizer is about to use."""

    gradients: dict[str, Tensor] | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients = {n: p.grad.double().cpu().clone() for n, p in model.named_parameters() if p.grad is not None}


def gradient_error(
    factory: Factory, weights: Mapping[str, float] | None, micro: int, accumulation: int, dtype: torch.dtype
) -> float:
    """‖g − g*‖ / ‖g*‖ of one step of `accumulation` micro-batches of `micro` samples on each process.

    Raises:
        NoWeights: from the factory.
        RuntimeError: the Trainer took no optimizer step, or trained other parameters.
    """
    keep, expected = _Keep(), reference(weights)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 1,
            "max_grad_norm": 0.0,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        trainer = factory(micro_model(dtype), samples(), weights, options)
        trainer.add_callback(keep)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    found = keep.gradients
    if found is None or found.keys() != expected.keys():
        raise RuntimeError(f"the Trainer's one step has gradients of {sorted(found or {})}, not of all parameters")
    off = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (off / sum(float(gradient.square().sum()) for gradient in expected.values())) ** 0.5


def ours(model: nn.Module, dataset: Dataset, weights: Mapping[str, float] | None, options: dict[str, Any]) -> Trainer:
    """`VitwTrainer`."""
    names, args = list(ANSWERS), VitwTrainingArguments(**options)
    return VitwTrainer(
        model,
        args,
        task_names=names,
        weighter=args.make_weighter(len(names), None if weights is None else [weights[name] for name in names]),
        train_dataset=dataset,
        data_collator=TaskCollator(pad, "task", names),
    )


def trainer_mixin(
    model: nn.Module, dataset: Dataset, weights: Mapping[str, float] | None, options: dict[str, Any]
) -> Trainer:
    """transformers' Trainer with the mix-in."""

    class Weighted(VitwMixin, Trainer):
        pass

    args = transformers.TrainingArguments(**options)
    return Weighted(model, args, train_dataset=dataset, weighter=weights, data_collator=pad)


def trainer_stock(
    model: nn.Module, dataset: Dataset, weights: Mapping[str, float] | None, options: dict[str, Any]
) -> Trainer:
    """transformers' Trainer."""
    if weights is not None:
        raise NoWeights
    return Trainer(model, transformers.TrainingArguments(**options), train_dataset=dataset, data_collator=pad)


def trl_mixin(
    model: nn.Module, dataset: Dataset, weights: Mapping[str, float] | None, options: dict[str, Any]
) -> Trainer:
    """TRL's SFTTrainer with the mix-in."""
    from trl import SFTConfig, SFTTrainer

    class Weighted(VitwMixin, SFTTrainer):
        pass

    args = SFTConfig(max_length=None, **options)
    return Weighted(model, args, train_dataset=dataset, weighter=weights, processing_class=word_tokenizer())


def trl_stock(model: Any, dataset: Dataset, weights: Mapping[str, float] | None, options: dict[str, Any]) -> Trainer:
    """TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    if weights is not None:
        raise NoWeights
    args = SFTConfig(max_length=None, **options)
    return SFTTrainer(model, args, train_dataset=dataset, processing_class=word_tokenizer())


def word_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """SFTTrainer asks for one even where the data hold token ids; of this one it uses the id of padding."""
    from tokenizers import Tokenizer, models

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )


FACTORIES: dict[str, Factory] = {
    "ours": ours,
    "trainer": trainer_mixin,
    "trainer-stock": trainer_stock,
    "trl": trl_mixin,
    "trl-stock": trl_stock,
}


def find_factory(name: str) -> Factory:
    """A factory of this file by its name, any other as MODULE:FUNCTION; ValueError where there is none."""
    if name in FACTORIES:
        return FACTORIES[name]
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"{name!r} is none of {', '.join(FACTORIES)}, nor MODULE:FUNCTION")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error


def measure(
    names: list[str], splits: Mapping[str, tuple[int, int]], dtype: torch.dtype
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Trainer → "equal" or "given" weights → split → error; None for weights that cannot be given."""
    result: dict[str, dict[str, dict[str, float] | None]] = {}
    for name in names:
        factory, rows = find_factory(name), result.setdefault(name, {})
        for kind, weights in (("equal", None), ("given", WEIGHTS)):
            try:
                rows[kind] = {split: gradient_error(factory, weights, *sizes, dtype) for split, sizes in splits.items()}
            except NoWeights:
                rows[kind] = None
    return result


def measure_on_two(names: list[str], dtype: str) -> dict[str, Any]:
    """`measure` of two processes with four micro-batches of eight samples each.

    Raises:
        RuntimeError: the processes failed; with the end of what they said.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "two.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += ["-m", "transformers_patch.conformance", *names, "--dtype", dtype, "--as_rank", str(file)]
        # The parent's path: a factory may lie where only it can see.
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"two processes failed:\n{result.stderr[-4000:]}")
        return json.loads(file.read_text())


def table(figures: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    columns = [*SPLITS, TWO]
    lines = [f"{'trainer':28}{'weights':9}" + "".join(f"{column:>13}" for column in columns)]
    for name, kinds in figures.items():
        for kind, errors in kinds.items():
            cells = "".join(f"{errors[column]:13.1e}" for column in columns) if errors else "   cannot be given"
            lines.append(f"{name:28}{kind:9}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainers", nargs="+", help=f"{', '.join(FACTORIES)} or MODULE:FUNCTION")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64", help="of the model")
    parser.add_argument("--output", type=Path, help="keep the figures in this file, with versions")
    parser.add_argument("--as_rank", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        for name in args.trainers:
            find_factory(name)
    except ValueError as error:
        parser.error(str(error))
    dtype = getattr(torch, args.dtype)
    transformers.logging.set_verbosity_error()
    if args.as_rank:
        figures = measure(args.trainers, {TWO: (8, 4)}, dtype)
        if dist.get_rank() == 0:
            args.as_rank.write_text(json.dumps(figures))
        return
    figures = measure(args.trainers, SPLITS, dtype)
    for name, kinds in measure_on_two(args.trainers, args.dtype).items():
        for kind, errors in kinds.items():
            row = figures[name][kind]
            if row is not None:
                row.update(errors)
    print(table(figures))
    if args.output:
        write_text(args.output, json.dumps(_record(args, figures), indent=2) + "\n")


def _record(args: argparse.Namespace, figures: Mapping[str, Any]) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "benchmark": "conformance",
        "date": date.today().isoformat(),
        "command": " ".join(["python", "-m", "transformers_patch.conformance", *sys.argv[1:]]),
        "versions": versions,
        "settings": {"dtype": args.dtype, "samples": SAMPLES, "weights": WEIGHTS, "figure": "‖g − g*‖ / ‖g*‖"},
        "figures": figures,
    }


if __name__ == "__main__":
    main()
