"""The step's loss is one loss, however the step is cut: batches, accumulation, ranks, LoRA, ZeRO, stops and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.vitw import oracle
from tests.vitw.workbench import METHODS, TASKS, collate, launch, parameters, run, trainer, zero
from transformers_patch.checkpoint import last_complete_checkpoint
from transformers_patch.trainer import VitwTrainer

MOVING = ["RLW", "DWA", "IGB"]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def one_batch(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Each method's parameters after 8 steps of one process and one batch of 16."""
    folder = tmp_path_factory.mktemp("one")
    return {m: parameters(run(folder, m, per_device_train_batch_size=16).model) for m in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_training_equals_a_plain_float64_loop(method, one_batch):
    expected, weights = oracle.train(method)
    assert largest_difference(one_batch[method], {n: p.detach() for n, p in expected.items()}) < 1e-12
    if method in MOVING:
        assert abs(weights - 1).max() > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_equals_one_batch(method, one_batch, tmp_path):
    engine = run(tmp_path, method, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert largest_difference(parameters(engine.model), one_batch[method]) < 1e-12


@pytest.mark.parametrize(("micro", "accumulation"), [(3, 5), (5, 3), (10, 2)])
def test_a_batch_that_its_places_do_not_divide_is_the_same_batch(micro, accumulation, tmp_path):
    """14 samples a step in 15 or 20 places, blanks in the rest; 41 samples end in a step of 13."""
    uneven = {"samples": 41, "num_train_epochs": 3, "max_steps": -1}
    split = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    engine = run(tmp_path / "split", "DWA", global_batch_size=14, **uneven, **split)
    whole = run(tmp_path / "whole", "DWA", per_device_train_batch_size=14, **uneven)
    assert engine.state.global_step == whole.state.global_step == 9
    assert largest_difference(parameters(engine.model), parameters(whole.model)) < 1e-12


def test_a_batch_that_needs_other_accumulation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="takes gradient_accumulation_steps 4, not 2"):
        run(tmp_path, "EW", global_batch_size=14, per_device_train_batch_size=4, gradient_accumulation_steps=2)


def test_two_processes_equal_one_batch(one_batch, tmp_path):
    """All six methods, LoRA, and uneven steps, in one launch of two processes × accumulation 2."""
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    jobs = [{"output_dir": str(tmp_path / m), "method": m, **split} for m in METHODS]
    jobs.append({"output_dir": str(tmp_path / "lora"), "method": "DWA", "lora": True, **split})
    uneven = {"samples": 41, "num_train_epochs": 3, "max_steps": -1}
    jobs.append({"output_dir": str(tmp_path / "uneven"), "method": "IGB", **uneven, **split})
    shared = {"global_batch_size": 14, "stop_at": 4}  # 14 samples in 2 × 2 × 4 places
    jobs += [{"output_dir": str(tmp_path / "shared"), "method": "IGB", **uneven, **split, **shared}]
    jobs += [{**jobs[-1], "stop_at": None, "resume": True}]
    launch(tmp_path, jobs)
    for method in METHODS:
        assert largest_difference(torch.load(tmp_path / method / "parameters.pt"), one_batch[method]) < 1e-12
    lora = run(tmp_path / "x", "DWA", lora=True, per_device_train_batch_size=16)
    assert largest_difference(torch.load(tmp_path / "lora" / "parameters.pt"), parameters(lora.model)) < 1e-12
    last = run(tmp_path / "y", "IGB", per_device_train_batch_size=16, **uneven)
    assert last.state.global_step == 9  # 41 samples: two steps of 16 and one of 9, three times
    assert largest_difference(torch.load(tmp_path / "uneven" / "parameters.pt"), parameters(last.model)) < 1e-12
    fourteen = run(tmp_path / "z", "IGB", per_device_train_batch_size=14, **uneven)
    assert largest_difference(torch.load(tmp_path / "shared" / "parameters.pt"), parameters(fourteen.model)) < 1e-12


def test_no_sample_of_an_uneven_epoch_is_counted_twice(tmp_path):
    engine = trainer(tmp_path, "EW", samples=41, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    valid = sum(int((sample["labels"] != -100).sum()) for sample in engine.train_dataset)
    counted = 0
    batches = iter(engine.get_train_dataloader())
    while (step := engine.get_batch_samples(batches, 4, torch.device("cpu")))[0]:
        counted += engine.step_counts.sum()
        assert float(step[1]) == engine.step_counts.sum()
    assert counted == valid


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_equals_one_process_to_float32_rounding(stage, tmp_path):
    gathered = {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    deepspeed = zero(stage, **gathered)
    options: dict[str, Any] = {"method": "DWA", "float32": True, "learning_rate": 1e-3}
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    jobs = [
        {"output_dir": str(tmp_path / impl), **options, **split, "deepspeed": deepspeed, "loss_impl": impl}
        for impl in ("select", "chunked")
    ]
    launch(tmp_path, jobs)
    expected = parameters(run(tmp_path / "one", per_device_train_batch_size=16, **options).model)
    for job in jobs:
        state = torch.load(Path(job["output_dir"]) / "parameters.pt")
        assert largest_difference({name: state[name].float() for name in expected}, expected) < 2e-5


@pytest.mark.parametrize("use_lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", MOVING)
def test_resume_equals_straight(method, use_lora, tmp_path):
    options: dict[str, Any] = {"max_steps": 16, "samples": 41, "lora": use_lora, "gradient_accumulation_steps": 4}
    options |= {"save_strategy": "steps", "save_steps": 8, "save_total_limit": 1}
    straight = run(tmp_path / "a", method, **options)
    stopped = run(tmp_path / "b", method, stop_at=8, **options)
    assert stopped.state.global_step == 8
    resumed = run(tmp_path / "b", method, resume=True, **options)
    assert resumed.state.global_step == 16
    assert largest_difference(parameters(resumed.model), parameters(straight.model)) == 0
    assert resumed.step_weights.tolist() == straight.step_weights.tolist()
    assert abs(straight.step_weights - 1).max() > 1e-3


def test_resume_of_two_processes_equals_straight(tmp_path):
    options = {"method": "DWA", "samples": 41, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    half = {"output_dir": str(tmp_path / "half"), **options}
    # Step 5 lies inside the second of the epochs, whose order is its own.
    launch(
        tmp_path,
        [{**half, "stop_at": 5}, {**half, "resume": True}, {"output_dir": str(tmp_path / "straight"), **options}],
    )
    states = [torch.load(tmp_path / name / "parameters.pt") for name in ("half", "straight")]
    assert largest_difference(*states) == 0


def test_resuming_from_the_last_step_trains_no_further(tmp_path):
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    done = run(tmp_path, "EW", **options)
    again = run(tmp_path, "EW", resume=True, **options)
    assert again.state.global_step == 4
    assert largest_difference(parameters(again.model), parameters(done.model)) == 0


def test_an_unfinished_checkpoint_is_not_used(tmp_path):
    run(tmp_path, "EW", save_strategy="steps", save_steps=4)
    (tmp_path / "checkpoint-8" / "complete").unlink()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_a_checkpoint_that_is_written_again_is_of_the_later_run(tmp_path):
    """Over one that is whole, and over what is left of one that was cut off."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    run(tmp_path, "EW", **options)
    (tmp_path / "checkpoint-1" / "complete").unlink()
    (tmp_path / "checkpoint-1" / "left").touch()
    later = run(tmp_path, "TLA", **options)
    assert not (tmp_path / "checkpoint-1" / "left").exists()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    resumed = run(tmp_path, "TLA", resume=True, **options)
    assert largest_difference(parameters(resumed.model), parameters(later.model)) == 0


def test_groups_are_the_unit_of_weighting(tmp_path):
    engine = run(tmp_path, "VisATB", task_units=[0, 1, 1, 0, 1])
    log = engine.state.log_history[0]
    shared = [log[f"task_weight/{name}"] for name in TASKS]
    assert shared == [0.8585, 1.0557, 1.0557, 0.8585, 1.0557]


def test_evaluation_reports_the_loss_of_each_task(tmp_path):
    engine = trainer(tmp_path, "VisATB", per_device_eval_batch_size=4)
    metrics = engine.evaluate()
    whole = trainer(tmp_path, "EW", per_device_eval_batch_size=13).evaluate()
    for key in ["eval_loss", *(f"eval_loss_{task}" for task in TASKS)]:
        assert metrics[key] == pytest.approx(whole[key], abs=1e-12)
    inputs = collate(engine.eval_dataset.samples)
    labels, tasks = inputs.pop("labels")[:, 1:], inputs.pop("vitw_task_ids")
    losses = F.cross_entropy(engine.model(**inputs).logits[:, :-1].transpose(1, 2), labels, reduction="none")
    valid = labels != -100
    assert metrics["eval_loss"] == pytest.approx(losses[valid].mean().item(), abs=1e-12)
    for task, name in enumerate(TASKS):
        of_task = valid & (tasks == task)[:, None]
        assert metrics[f"eval_loss_{name}"] == pytest.approx(losses[of_task].mean().item(), abs=1e-12)


def test_a_step_without_valid_tokens_changes_nothing_but_does_not_fail(tmp_path):
    engine = trainer(tmp_path, "TLA", weight_decay=0.0, max_steps=1)
    for sample in engine.train_dataset.samples:
        sample["labels"][:] = -100
    before = parameters(engine.model)
    engine.train()
    assert largest_difference(before, parameters(engine.model)) == 0


def test_micro_batch_norm_is_the_published_scheme(tmp_path):
    """With one sample per micro-batch, λ cancels: VisATB equals EW under `micro_batch`, and differs under `step`."""
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 2}
    runs = {
        (m, norm): parameters(run(tmp_path, m, loss_norm=norm, **one).model)
        for m in ("EW", "VisATB")
        for norm in ("step", "micro_batch")
    }
    assert largest_difference(runs["EW", "micro_batch"], runs["VisATB", "micro_batch"]) < 1e-12
    assert largest_difference(runs["EW", "step"], runs["VisATB", "step"]) > 1e-4


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_what_splits_a_sample_over_processes_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(VitwTrainer, f"get_{kind}_size", lambda self: 2)
    with pytest.raises(ValueError, match="parallelism are not supported"):
        trainer(tmp_path)
