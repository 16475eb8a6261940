"""The weighted loss in trainers that are not ours: transformers' own, and the real TRL; with the guide's example."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, Trainer
from transformers import TrainingArguments as StockArguments
from trl import SFTConfig, SFTTrainer

from tests.vitw.workbench import METHODS
from transformers_patch import DynamicWeightAverage, VitwMixin, WeightingArguments

ROOT = Path(__file__).parents[2]
WEIGHTS = {"caption": 0.6, "vqa": 1.4}
WORDS = [f"w{number}" for number in range(40)]


class WeightedSFT(VitwMixin, SFTTrainer):
    pass


class WeightedTrainer(VitwMixin, Trainer):
    pass


@dataclass
class WeightedConfig(WeightingArguments, SFTConfig):
    pass


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def micro_model(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    size: dict[str, int] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=43, num_attention_heads=2, **size)).to(dtype)


def texts(number: int = 16) -> Dataset:
    """Prompts of three words; captions of ten to twelve words and answers of one."""
    rows = []
    for i in range(number):
        words = [WORDS[(7 * i + 3 * k * k) % 40] for k in range(16)]
        task = ("vqa", "caption", "vqa")[i % 3]
        length = 1 if task == "vqa" else 10 + i % 3
        answer = " " + " ".join(words[3 : 3 + length]) + " "
        rows.append({"prompt": " ".join(words[:3]), "completion": answer, "task": task})
    return Dataset.from_list(rows)


def options(folder: Path, **more: Any) -> dict[str, Any]:
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    step = {"per_device_train_batch_size": 16, "max_steps": 1, "learning_rate": 1e-2}
    return {"output_dir": str(folder), "gradient_checkpointing": False, **quiet, **step, **more}


def sft(folder: Path, dataset: Dataset | None = None, config: type = SFTConfig, **more: Any) -> Any:
    """A weighted SFTTrainer in float64; of `more`, what is the mix-in's goes there."""
    own = {
        name: more.pop(name) for name in ("weighter", "task_column", "compute_metrics", "eval_dataset") if name in more
    }
    args = config(**options(folder, bf16=False, **more))
    data = texts() if dataset is None else dataset
    trainer = WeightedSFT(micro_model(torch.float64), args, train_dataset=data, processing_class=tokenizer(), **own)
    trainer.remove_callback(PrinterCallback)
    return trainer


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Right-padded batch of rows that hold token ids."""

    def column(name: str, value: int) -> torch.Tensor:
        parts = [torch.as_tensor(row[name]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    ids = column("input_ids", 0)
    return {"input_ids": ids, "labels": column("labels", -100), "attention_mask": (ids != 0).long()}


def parameters(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def plain_step(model: LlamaForCausalLM, rows: list[dict[str, Any]], rate: float) -> torch.Tensor:
    """All parameters after one step of plain gradient descent on one batch, Equation 2 written out."""
    batch = pad(rows)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    total = divisor = torch.zeros(())
    for row, scores in zip(rows, logits, strict=True):
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                weight = WEIGHTS[row["task"]]
                total = total + weight * F.cross_entropy(scores[position], torch.tensor(label))
                divisor = divisor + weight
    (total / divisor).backward()
    return torch.cat([(p - rate * p.grad).detach().flatten() for p in model.parameters() if p.grad is not None])


def test_the_example_of_the_guide_is_exact(tmp_path):
    """Four micro-batches of four in TRL, in float32, equal one big batch to 1e-6."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/trainers.md").read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(code, "trainers.md", "exec"), names)  # our own page
    model = micro_model(torch.float32)
    start = copy.deepcopy(model)
    (tmp_path / "weights.json").write_text(json.dumps({"tasks": list(WEIGHTS), "weights": WEIGHTS}))
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "optim": "sgd", "learning_rate": 1.0}
    settings = options(tmp_path, bf16=False, max_grad_norm=0.0, **split)
    trainer = names["train"](
        model, tokenizer(), texts(), tmp_path / "weights.json", settings.pop("output_dir"), **settings
    )
    rows = list(trainer.train_dataset)
    counts = {
        task: sum(label != -100 for row in rows if row["task"] == task for label in row["labels"][1:])
        for task in WEIGHTS
    }
    assert (parameters(trainer) - plain_step(start, rows, 1.0)).abs().max() < 1e-6
    assert (parameters(trainer) - torch.cat([p.flatten() for p in start.parameters()])).abs().max() > 1e-2
    log = trainer.state.log_history[0]
    assert {task: log[f"task_weight/{task}"] for task in WEIGHTS} == WEIGHTS
    assert log["task_tokens/vqa"] == pytest.approx(22 / sum(counts.values()))
    assert log["loss"] == pytest.approx(
        sum(WEIGHTS[t] * counts[t] * log[f"task_loss/{t}"] for t in WEIGHTS)
        / sum(WEIGHTS[t] * counts[t] for t in WEIGHTS),
        rel=1e-4,
    )


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_equals_one_batch_in_trl(method, tmp_path):
    steps = {"max_steps": 4, "config": WeightedConfig, "weight_method": method, "dwa_window": 1, "igb_window": 1}
    steps |= {"weighter": WEIGHTS} if method == "VisATB" else {}
    whole = sft(tmp_path / "a", **steps)
    parts = sft(tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=4, **steps)
    for trainer in (whole, parts):
        trainer.train()
    assert (parameters(whole) - parameters(parts)).abs().max() < 1e-12
    weights = [entry["task_weight/vqa"] for entry in whole.state.log_history if "task_weight/vqa" in entry]
    assert len(weights) == 4
    assert (max(weights) - min(weights) > 1e-4) == (method in ("RLW", "DWA", "IGB"))


def test_a_stock_trainer_with_the_mixin_equals_trl_with_it(tmp_path):
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 3}
    trl = sft(tmp_path / "a", weighter=WEIGHTS, **split)
    rows = trl.train_dataset.remove_columns(["prompt", "completion"]).rename_column("task", "skill")
    args = StockArguments(**options(tmp_path / "b", **split))
    stock = WeightedTrainer(
        micro_model(torch.float64), args, train_dataset=rows, weighter=WEIGHTS, task_column="skill", data_collator=pad
    )
    stock.remove_callback(PrinterCallback)
    for trainer in (trl, stock):
        trainer.train()
    assert (parameters(trl) - parameters(stock)).abs().max() < 1e-12


def test_resume_in_trl_equals_straight(tmp_path):
    """Stopped in the middle of the second of three epochs; DWA's λ depends on the losses before."""
    run = {"max_steps": 9, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "dataset": texts(24)}
    run |= {"save_strategy": "steps", "save_steps": 4}
    made = [sft(tmp_path, weighter=DynamicWeightAverage(2, window=1), **run) for _ in range(2)]
    made[0].train()
    made[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert made[1].state.global_step == 9
    assert (parameters(made[0]) - parameters(made[1])).abs().max() == 0
    (tmp_path / "checkpoint-8/weighter.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-8 has no weighter\.json"):
        sft(tmp_path, weighter=DynamicWeightAverage(2, window=1), **run).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-8")
        )


def test_resume_on_two_processes_equals_straight(tmp_path):
    """To the bit, DWA's state with it; stopped in the second of three epochs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += ["-m", "tests.vitw.mixin_ranks", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    found = torch.load(tmp_path / "runs.pt")
    assert found["steps"] == [9, 9]
    assert torch.equal(*found["parameters"])
    assert found["weights"][0] == found["weights"][1]
    assert max(found["weights"][0]) - min(found["weights"][0]) > 1e-3


def test_evaluation_in_trl_gives_the_loss_of_each_task(tmp_path):
    trainer = sft(tmp_path, eval_dataset=texts(7), per_device_eval_batch_size=2)
    found = trainer.evaluate()
    whole = sft(tmp_path, eval_dataset=texts(7), per_device_eval_batch_size=7).evaluate()
    for key in ("eval_loss", "eval_loss_caption", "eval_loss_vqa"):
        assert found[key] == pytest.approx(whole[key], abs=1e-12)
    assert found["eval_loss_caption"] != found["eval_loss_vqa"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dataset": texts().remove_columns("task")}, "no column 'task' .*it has prompt, completion"),
        ({"task_column": "kind"}, "no column 'kind'"),
        ({"dataset": texts().map(lambda row: {"task": len(row["task"])})}, "must hold the names of tasks, but holds 3"),
        ({"weighter": {"vqa": 1.0, "chart": 2.0}}, r"missing \['caption'\], unknown \['chart'\]"),
        ({"weighter": "PCGrad"}, "one of EW, TLA, RLW, DWA, IGB, VisATB, got 'PCGrad'"),
        ({"weighter": "VisATB"}, "VisATB needs weights"),
        ({"weighter": "EW", "config": WeightedConfig, "weight_method": "TLA"}, "means EW, but weight_method is TLA"),
        ({"weighter": DynamicWeightAverage(1)}, "1 units of the weighter"),
        ({"packing": True, "max_length": 64}, "packing cannot be combined with task weights"),
        ({"loss_type": "dft"}, "loss_type dft cannot be combined"),
        ({"compute_metrics": dict}, "compute_metrics cannot be combined"),
    ],
)
def test_what_cannot_be_is_said_before_data_are_prepared(more, message, tmp_path, monkeypatch):
    monkeypatch.setattr(SFTTrainer, "__init__", lambda *args, **kwargs: pytest.fail("the Trainer was begun"))
    with pytest.raises(ValueError, match=message):
        sft(tmp_path, **more)


def test_a_task_that_training_does_not_know_is_named(tmp_path):
    other = Dataset.from_list([{"prompt": "w1", "completion": " w2 ", "task": "chart"}])
    with pytest.raises(ValueError, match="task is 'chart', not one of caption, vqa"):
        sft(tmp_path, eval_dataset=other).evaluate()


@pytest.mark.parametrize(("processes", "number", "repeated"), [(2, 7, 1), (2, 9, 3), (3, 7, 5), (2, 8, 0), (1, 7, 0)])
def test_samples_that_a_stock_loader_repeats_are_counted(processes, number, repeated, tmp_path, monkeypatch, caplog):
    """Each process takes batches of 2."""
    trainer = sft(tmp_path, dataset=texts(number), per_device_train_batch_size=2)
    monkeypatch.setattr(type(trainer.args), "world_size", property(lambda self: processes))
    trainer.get_train_dataloader()
    assert ("count twice" in caplog.text) == (repeated > 0)
    assert f"filled up with {repeated} samples" in caplog.text or not repeated
