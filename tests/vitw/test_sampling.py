"""λ as sampling ratios: the expected gradient is that of the weighted loss; epochs, ranks and stops change nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vitw.test_exact import largest_difference, launch
from tests.vitw.workbench import GIVEN, Samples, collate, parameters, run, tiny_model
from transformers_patch.sampler import WeightedOrder

LAMBDA = np.array([0.4, 1.6, 1.0])


@pytest.fixture(scope="module")
def of_samples() -> dict[str, np.ndarray]:
    """Of 40 samples of the tiny LLaVA: task, target tokens T, and gradient g of the summed token losses."""
    model, samples = tiny_model(), Samples(40)
    gradients = []
    for sample in samples:
        model.zero_grad()
        batch = collate([sample])
        labels = batch.pop("labels")[:, 1:]
        batch.pop("vitw_task_ids")
        logits = model(**batch).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum").backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy())
    return {
        "task": np.array([sample["vitw_task_ids"] for sample in samples]),
        "tokens": np.array([int((sample["labels"][1:] != -100).sum()) for sample in samples]),
        "gradient": np.stack(gradients),
    }


def weighted_gradient(weights: np.ndarray, tokens: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Equation 2 over all samples as one batch."""
    return weights @ gradients / (weights @ tokens)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_law_of_a_step_has_the_weighted_gradient(size, of_samples):
    """Every step of seven samples, drawn with replacement by the order's own probabilities: exact, for any size."""
    chosen = np.array([0, 3, 4, 7, 9, 12, 20])
    task, tokens, gradients = (of_samples[name][chosen] for name in ("task", "tokens", "gradient"))
    order = WeightedOrder(GIVEN, task, tokens, size, seed=0)
    expected, total = np.zeros(gradients.shape[1]), 0.0
    for step in itertools.product(range(len(chosen)), repeat=size):
        law = order.by_tokens[step[0]] * np.prod(order.by_weight[list(step[1:])])
        expected += law * gradients[list(step)].sum(0) / tokens[list(step)].sum()
        total += law
    truth = weighted_gradient(np.array(GIVEN)[task], tokens, gradients)
    assert total == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(expected - truth) < 1e-12 * np.linalg.norm(truth)


def test_the_mean_of_many_drawn_steps_is_the_weighted_gradient(of_samples):
    """The draws themselves, each step of the epoch; without the first sample's part they are off."""
    task, tokens, gradients = of_samples["task"], of_samples["tokens"], of_samples["gradient"]
    truth = weighted_gradient(np.array(GIVEN)[task], tokens, gradients)
    size, draws = 4, 8_000
    order = WeightedOrder(GIVEN, task, tokens, size, seed=0)
    direction = gradients @ (truth / np.linalg.norm(truth) ** 2)  # the part along g*, in units of it

    def off(steps: np.ndarray) -> np.ndarray:
        """How many standard errors the mean of each column of steps lies beside g*."""
        found = direction[steps].sum(-1) / tokens[steps].sum(-1)
        error = found.std(0) / np.sqrt(draws)
        assert error.max() < 0.02
        return abs(found.mean(0) - 1) / error

    assert off(np.stack([order(epoch).reshape(-1, size) for epoch in range(draws)])).max() < 4
    plain = np.random.default_rng(0).choice(len(task), (draws, 1, size), p=order.by_weight)
    assert off(plain).min() > 10


def order_of(counts: tuple[int, ...] = (30, 50, 20), size: int = 8, weights: Any = LAMBDA, seed: int = 5):
    task = np.repeat(np.arange(len(counts)), counts)
    return WeightedOrder(weights, task, np.random.default_rng(0).integers(1, 9, len(task)), size, seed), task


def test_epochs_have_one_length_and_tasks_their_shares():
    order, task = order_of()
    epochs = [order(epoch) for epoch in range(400)]
    assert {len(epoch) for epoch in epochs} == {100}
    assert all(np.array_equal(order(3), order_of()[0](3)) for _ in range(2))
    assert not np.array_equal(epochs[0], epochs[1])
    others = np.concatenate([np.delete(epoch, np.arange(0, 100, 8)) for epoch in epochs])
    shares = np.bincount(task[others]) / len(others)
    expected = LAMBDA * [30, 50, 20] / (LAMBDA @ [30, 50, 20])
    assert abs(shares - expected).max() < 0.01


def test_no_sample_comes_twice_before_its_task_is_through():
    order, _ = order_of((400, 400), weights=[1.0, 1.0])
    once = np.delete(order(0), np.arange(0, 800, 8))
    assert np.bincount(once).max() <= 2
    assert np.bincount(order_of((100, 100), weights=[0.0, 1.0])[0](0)[:80], minlength=200)[:100].sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [0.0, 0.0, 0.0]}, "nothing is left to draw"),
        ({"weights": [1.0, -1.0, 1.0]}, "negative"),
        ({"weights": [1.0, float("nan"), 1.0]}, "finite"),
        ({"size": 0}, "step_size must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        order_of(**change)


def test_stops_and_ranks_change_nothing(tmp_path: Path):
    """To the bit after a stop in the second epoch; to rounding on two processes."""
    drawn = {"sampled": True, "samples": 41, "max_steps": 8}
    whole = run(tmp_path / "whole", "EW", per_device_train_batch_size=8, **drawn)
    stopped = run(tmp_path / "stop", "EW", per_device_train_batch_size=8, stop_at=7, **drawn)
    assert stopped.state.global_step == 7
    again = run(tmp_path / "stop", "EW", per_device_train_batch_size=8, resume=True, **drawn)
    assert again.state.global_step == 8
    assert largest_difference(parameters(again.model), parameters(whole.model)) == 0
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    launch(tmp_path, [{"output_dir": str(tmp_path / "two"), "method": "EW", **split, **drawn}])
    assert largest_difference(torch.load(tmp_path / "two/parameters.pt"), parameters(whole.model)) < 1e-12
    plain = run(tmp_path / "plain", "EW", per_device_train_batch_size=8, **{**drawn, "sampled": False})
    assert largest_difference(parameters(plain.model), parameters(whole.model)) > 1e-3
