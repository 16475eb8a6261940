"""A training that is no longer finite stops at that step, on all ranks, and leaves no checkpoint of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vitw.workbench import TASKS, Samples, launch, parameters, run, trainer, zero
from transformers_patch.checkpoint import DivergedError, last_complete_checkpoint, nonfinite_weights
from transformers_patch.sampler import shuffled

BATCH = 16
SAMPLES = Samples(128).samples
SECOND_STEP = shuffled(128, 42)(0)[BATCH : 2 * BATCH]
POISON = next(int(index) for index in SECOND_STEP if "pixel_values" in SAMPLES[index])  # in one rank's part of it
TASK = TASKS[SAMPLES[POISON]["vitw_task_ids"]]
MESSAGE = f"step 2: the loss of {TASK} is not finite"


def test_step_and_task_are_named_and_nothing_of_the_step_is_kept(tmp_path):
    options: dict[str, Any] = {"per_device_train_batch_size": BATCH, "save_strategy": "steps", "save_steps": 1}
    straight = run(tmp_path / "a", "EW", **options, max_steps=1)
    engine = trainer(tmp_path / "b", "EW", **options, poison=POISON)
    with pytest.raises(DivergedError, match=MESSAGE):
        engine.train()
    assert all(torch.equal(value, parameters(engine.model)[key]) for key, value in parameters(straight.model).items())
    assert last_complete_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "checkpoint-1")
    with pytest.raises(DivergedError, match=MESSAGE):  # it goes on from before, and says the same again
        run(tmp_path / "b", "EW", resume=True, **options, poison=POISON)


def test_two_processes_stop_together_also_under_deepspeed(tmp_path):
    one: dict[str, Any] = {"method": "EW", "gradient_accumulation_steps": 2, "poison": POISON}
    jobs = [
        {"output_dir": str(tmp_path / "ddp"), **one},
        {"output_dir": str(tmp_path / "zero"), **one, "float32": True, "deepspeed": zero(2)},
    ]
    launch(tmp_path, jobs)
    for job in jobs:
        for rank in range(2):
            assert MESSAGE in (Path(job["output_dir"]) / f"diverged-{rank}.txt").read_text()


def test_a_gradient_that_is_not_finite_stops_the_step_before_the_update(tmp_path):
    engine = trainer(tmp_path, "EW")
    weight = engine.model.lm_head.weight
    weight.register_hook(lambda gradient: gradient * (float("inf") if engine.state.global_step == 2 else 1))
    with pytest.raises(
        DivergedError, match=r"step 3: the norm of the gradient is not finite \(tasks of the step: .*vqa"
    ):
        engine.train()
    assert engine.state.global_step == 2
    assert weight.isfinite().all()


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path):
    """The last step's loss and gradient are finite, its update is not."""
    options: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e39}
    engine = trainer(tmp_path, "EW", **options, float32=True, warmup_steps=1)  # step 1 has learning rate 0
    with pytest.raises(DivergedError, match=r"step 2: \d+ saved tensors hold NaN or infinities"):
        engine.train()
    assert "lm_head.weight" in " ".join(nonfinite_weights(tmp_path / "checkpoint-2"))
    assert last_complete_checkpoint(tmp_path) is None
