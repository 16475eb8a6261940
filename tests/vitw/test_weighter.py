"""Weighters against values worked out by hand from the table in the module's formulas."""

import doctest
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from transformers_patch.weighter import (
    WEIGHTERS,
    DynamicWeightAverage,
    EqualWeighting,
    GivenWeights,
    ImprovableGapBalancing,
    RandomWeighting,
    TaskLevelAggregation,
)

COUNTS = np.array([100, 4, 0])


def test_the_examples_in_the_docstrings():
    import transformers_patch.weighter

    results = doctest.testmod(transformers_patch.weighter)
    assert results.attempted >= 8
    assert not results.failed


def test_weighters_are_had_without_loading_torch():
    code = "import sys; from transformers_patch import WEIGHTERS; assert 'torch' not in sys.modules; print(*WEIGHTERS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(WEIGHTERS)


def test_a_method_is_one_class_and_one_line(monkeypatch):
    """Its own arguments included: nothing else knows the methods."""
    from transformers_patch.arguments import VitwTrainingArguments

    class Steep(EqualWeighting):
        name = "Steep"

        def __init__(self, num_tasks, seed):
            super().__init__(num_tasks)
            self.seed = seed

        @classmethod
        def from_arguments(cls, arguments, num_tasks, weights):
            return cls(num_tasks, arguments.seed)

    monkeypatch.setitem(WEIGHTERS, "Steep", Steep)
    made = VitwTrainingArguments.make_weighter(SimpleNamespace(weight_method="Steep", seed=7), 3)
    assert (type(made), made.num_tasks, made.seed) == (Steep, 3, 7)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("RLW", {"seed": 3}),
        ("DWA", {"window": 5, "temperature": 1.5}),
        ("IGB", {"window": 9}),
        ("EW", {}),
        ("TLA", {}),
    ],
)
def test_methods_read_their_own_arguments(method, expected):
    arguments = SimpleNamespace(seed=3, dwa_window=5, dwa_temperature=1.5, igb_window=9)
    made = WEIGHTERS[method].from_arguments(arguments, 2, None)
    assert {name: getattr(made, name) for name in expected} == expected


def test_weights_belong_to_the_method_that_takes_them():
    from transformers_patch.arguments import VitwTrainingArguments

    def make(method, weights):
        return VitwTrainingArguments.make_weighter(SimpleNamespace(weight_method=method), 2, weights)

    assert make(None, None).name == "EW"
    assert make(None, [1, 2]).weights.tolist() == [1, 2]
    assert make("VisATB", np.array([1, 2])).weights.tolist() == [1, 2]
    with pytest.raises(ValueError, match="VisATB needs weights"):
        make("VisATB", None)
    with pytest.raises(ValueError, match="weights were given, but weight_method is TLA"):
        make("TLA", [1, 2])


def test_equal_and_given_weights():
    assert EqualWeighting(3).task_weights(0, COUNTS).tolist() == [1, 1, 1]
    assert GivenWeights(3, [0.5, 0, 2]).task_weights(9, COUNTS).tolist() == [0.5, 0, 2]


@pytest.mark.parametrize("weights", [[1, 2], [1, -1, 1], [1, math.nan, 1], [0, 0, 0], [1, math.inf, 1]])
def test_given_weights_are_checked(weights):
    with pytest.raises(ValueError, match="weights"):
        GivenWeights(3, weights)


def test_tla_is_the_mean_of_the_means_of_tasks_present():
    weights = TaskLevelAggregation(3).task_weights(0, COUNTS)
    sums = np.array([300.0, 2.0, 0.0])
    assert weights @ sums / (weights @ COUNTS) == pytest.approx((3.0 + 0.5) / 2)


def test_rlw_is_one_normalised_draw_per_step():
    weighter = RandomWeighting(3, seed=5)
    first = weighter.task_weights(0, COUNTS)
    assert first.sum() == pytest.approx(3)
    assert first.tolist() == RandomWeighting(3, seed=5).task_weights(0, COUNTS[::-1]).tolist()
    assert abs(first - weighter.task_weights(1, COUNTS)).max() > 0.01
    assert abs(first - RandomWeighting(3, seed=6).task_weights(0, COUNTS)).max() > 0.01
    draws = np.array([np.log(weighter.task_weights(step, COUNTS)) for step in range(4000)])
    differences = draws[:, 0] - draws[:, 1]  # the difference of two standard normal draws: variance 2
    assert differences.mean() == pytest.approx(0, abs=0.1)
    assert differences.var() == pytest.approx(2, rel=0.1)


def test_dwa_by_hand():
    weighter = DynamicWeightAverage(2, window=2, temperature=2.0)
    losses = {0: [4.0, 2.0, 2.0, 1.0], 1: [1.0, 1.0, 1.0, 2.0]}
    for step in range(4):
        assert weighter.task_weights(step, COUNTS[:2]).tolist() == [1, 1]
        weighter.observe(step, np.array([losses[0][step] * 10, losses[1][step] * 3]), np.array([10, 3]))
    a, b = math.exp(0.5 / 2), math.exp(1.5 / 2)  # rates: (2+1)/(4+2) and (1+2)/(1+1)
    assert weighter.task_weights(4, COUNTS[:2]) == pytest.approx([2 * a / (a + b), 2 * b / (a + b)])


def test_dwa_counts_only_steps_in_which_the_task_is_present():
    weighter = DynamicWeightAverage(2, window=1)
    weighter.observe(0, np.array([2.0, 0.0]), np.array([1, 0]))
    weighter.observe(1, np.array([1.0, 5.0]), np.array([1, 1]))
    a, b = math.exp(0.5 / 2), math.exp(1 / 2)  # the second task has one observation only: rate 1
    assert weighter.task_weights(2, COUNTS[:2]) == pytest.approx([2 * a / (a + b), 2 * b / (a + b)])


def test_igb_by_hand():
    weighter = ImprovableGapBalancing(3, window=2)
    losses = [9.0, 9.0, 4.0, 2.0, 1.5]
    for step, loss in enumerate(losses):
        if step <= 3:
            assert weighter.task_weights(step, COUNTS).tolist() == [1, 1, 1]
        present = np.array([1, 1 if step == 2 else 0, 1 if step == 4 else 0])
        weighter.observe(step, loss * present, present)
    # task 0: 1.5 / mean(4, 2); task 1: its only observation is its base; task 2: absent from the base steps
    gaps = np.exp([0.5, 1.0, 1.0])
    assert weighter.task_weights(5, COUNTS) == pytest.approx(3 * gaps / gaps.sum())


def test_igb_weighs_nothing_before_its_base_is_whole():
    weighter = ImprovableGapBalancing(2, window=3)
    for step, loss in enumerate([9.0, 9.0, 9.0, 4.0, 2.0]):
        weighter.observe(step, np.array([loss, 1.0]), np.array([1, 1]))
    assert weighter.task_weights(5, COUNTS[:2]).tolist() == [1, 1]  # 2 / mean(4, 2) would not be 1
    assert weighter.task_weights(6, COUNTS[:2])[0] < 1


@pytest.mark.parametrize("method", ["DWA", "IGB"])
def test_state_survives_json(method):
    rng = np.random.default_rng(0)
    straight, resumed = (WEIGHTERS[method](3, window=2) for _ in range(2))
    for step in range(12):
        counts = rng.integers(0, 3, 3)
        losses = rng.random(3) * counts
        if step == 5:
            resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
        straight.observe(step, losses, counts)
        if step >= 5:
            resumed.observe(step, losses, counts)
    assert straight.task_weights(12, COUNTS).tolist() == resumed.task_weights(12, COUNTS).tolist()
    assert abs(straight.task_weights(12, COUNTS) - 1).max() > 1e-3


@pytest.mark.parametrize("method", ["DWA", "IGB"])
def test_zero_losses_give_no_nan(method):
    weighter = WEIGHTERS[method](2, window=1)
    for step in range(6):
        weighter.observe(step, np.array([0.0, 1.0 if step else 0.0]), np.array([1, 1]))
        assert np.isfinite(weighter.task_weights(step + 1, COUNTS[:2])).all()


def test_arguments_are_checked():
    for make in (
        lambda: DynamicWeightAverage(2, window=0),
        lambda: DynamicWeightAverage(2, temperature=0),
        lambda: ImprovableGapBalancing(2, window=0),
        lambda: EqualWeighting(0),
    ):
        with pytest.raises(ValueError, match=r"at least|above"):
            make()
    with pytest.raises(ValueError, match="keeps no state"):
        EqualWeighting(2).load_state_dict({"losses": []})
