"""Counts known beforehand, and samples dealt evenly: the same parameters, less waiting."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.vitw.workbench import METHODS, StopAt, parameters, run, trainer
from transformers_patch.sampler import EpochBatchSampler, deal, shuffled
from transformers_patch.trainer import VitwTrainer

SPLIT: dict[str, Any] = {"samples": 41, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
SPLIT |= {"num_train_epochs": 2, "max_steps": -1}


def tell(engine: VitwTrainer) -> VitwTrainer:
    """Give the data set the columns of an index: counts, tasks and lengths."""
    data: Any = engine.train_dataset
    data.target_tokens = np.array([int((sample["labels"][1:] != -100).sum()) for sample in data.samples])
    data.task_ids = np.array([sample["vitw_task_ids"] for sample in data.samples])
    data.lengths = np.array([len(sample["input_ids"]) for sample in data.samples])
    return engine


@pytest.mark.parametrize("method", METHODS)
def test_known_counts_give_the_same_parameters_to_the_bit(method, tmp_path):
    counted = run(tmp_path, method, **SPLIT)
    known = tell(trainer(tmp_path, method, **SPLIT))
    known.train()
    assert known.state.global_step == counted.state.global_step == 6
    theirs = parameters(counted.model)
    assert all(torch.equal(value, theirs[name]) for name, value in parameters(known.model).items())
    for a, b in zip(known.state.log_history[:-1], counted.state.log_history[:-1], strict=True):
        assert {k: v for k, v in a.items() if "second" not in k} == {k: v for k, v in b.items() if "second" not in k}


def test_a_step_is_one_message_between_ranks(tmp_path):
    """Its losses, at its end; without counts known beforehand there is one more before its first forward."""
    messages = {}
    for name, prepare in (("known", tell), ("counted", lambda engine: engine)):
        engine = prepare(trainer(tmp_path, "VisATB", **{**SPLIT, "logging_steps": 100}))
        reduce, sent = engine.accelerator.reduce, messages.setdefault(name, [])
        engine.accelerator.reduce = lambda tensor, reduction, reduce=reduce, sent=sent: (
            sent.append(tensor.shape) or reduce(tensor, reduction)
        )
        engine.train()
    assert len(messages["counted"]) == 12
    assert len(messages["known"]) == 6


def test_a_resumed_epoch_knows_its_steps(tmp_path):
    """A stop within the second epoch; the counts of later steps are those of their own samples, or the step fails."""
    straight = tell(trainer(tmp_path / "a", "TLA", **SPLIT))
    straight.train()
    half = tell(trainer(tmp_path / "b", "TLA", **SPLIT))
    half.add_callback(StopAt(half, 4))
    half.train()
    rest = tell(trainer(tmp_path / "b", "TLA", **SPLIT))
    rest.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert (half.state.global_step, rest.state.global_step) == (4, 6)
    theirs = parameters(straight.model)
    assert all(torch.equal(value, theirs[name]) for name, value in parameters(rest.model).items())


def test_batches_are_fetched_when_their_turn_comes(tmp_path):
    engine = tell(trainer(tmp_path, "EW", max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=4))
    events = []
    collate, forward = engine.data_collator, engine.compute_loss
    engine.data_collator = lambda samples: events.append("fetch") or collate(samples)
    engine.compute_loss = lambda *a, **k: events.append("forward") or forward(*a, **k)  # type: ignore[method-assign]
    engine.train()
    # The data loader itself is one batch ahead.
    assert events == ["fetch", *["fetch", "forward"] * 4]


def test_counts_that_the_batches_do_not_hold_stop_the_step(tmp_path):
    engine = tell(trainer(tmp_path, "EW", **SPLIT))
    engine.train_dataset.target_tokens = engine.train_dataset.target_tokens + 1  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"target tokens, but \d+ were counted for it"):
        engine.train()


class Waits(TorchDispatchMode):
    """Counts the calls for which a GPU's program waits: their result's shape, or value, is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if masked or name in ("nonzero", "masked_select", "bincount", "_local_scalar_dense", "equal"):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def test_a_micro_batch_waits_once_more_than_its_model(tmp_path):
    """The number of its targets is asked for once; counts, tasks, losses and their gradient need nothing more."""
    engine = tell(trainer(tmp_path, "VisATB", loss_impl="select"))
    batch = engine.data_collator([engine.train_dataset[i] for i in range(4)])
    model = engine.model
    with Waits() as plain:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "vitw_task_ids")}
        model(**inputs, use_cache=False).logits.sum().backward()
    with Waits() as ours:
        engine.compute_loss(model, batch, num_items_in_batch=100).backward()
    more = ours.calls - plain.calls
    assert sum(more.values()) <= 1, more


@pytest.mark.parametrize("method", ["EW", "TLA"])
def test_dealt_samples_give_the_same_parameters(method, tmp_path):
    plain = run(tmp_path, method, **SPLIT)
    dealt = tell(trainer(tmp_path, method, **SPLIT))
    dealt.even_ranks = True
    dealt.train()
    theirs, ours = parameters(plain.model), parameters(dealt.model)
    assert max((value - theirs[name]).abs().max().item() for name, value in ours.items()) < 1e-12


@pytest.mark.parametrize(("ranks", "micro", "accumulation"), [(8, 16, 1), (8, 4, 4), (3, 6, 2), (1, 4, 4)])
def test_ranks_have_even_work_and_the_samples_of_their_step(ranks, micro, accumulation):
    """Lengths as LLaVA's data have them: 576 tokens of an image and a text, or a longer text alone."""
    rng = np.random.default_rng(0)
    size = ranks * micro * accumulation
    lengths = np.where(rng.random(10 * size + 5) < 0.7, 576, 60) + rng.gamma(2, 60, 10 * size + 5).astype(int)
    order = shuffled(len(lengths), 0)
    batches = EpochBatchSampler(order, len(lengths), micro, ranks, size, lengths)
    flat = np.array(list(batches))
    shipped = np.array(list(EpochBatchSampler(order, len(lengths), micro, ranks, size)))
    assert len(flat) == len(batches) == len(shipped)
    worst = []
    for step in range(10):
        part = slice(step * ranks * accumulation, (step + 1) * ranks * accumulation)
        assert sorted(flat[part].ravel()) == sorted(shipped[part].ravel())
        work = lengths[flat[part]].reshape(accumulation, ranks, micro).sum((0, 2))
        worst.append(work.max() / work.mean())
    assert np.mean(worst) <= 1.02
    rest = flat[10 * ranks * accumulation :]
    assert sorted(i for i in rest.ravel() if i < len(lengths)) == sorted(order(0)[10 * size :])


def test_dealing_is_pure_and_takes_each_place_once():
    lengths = np.random.default_rng(1).integers(1, 500, 48)
    first = deal(lengths, 4, 3)
    assert first.shape == (12, 4)
    assert sorted(first.ravel()) == list(range(48))
    assert np.array_equal(first, deal(lengths, 4, 3))
