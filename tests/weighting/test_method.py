"""The method's formulas: Table 5 and Table 2 of the paper, hand-computed cases, and properties."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighting_visatb import (
    WeightingError,
    auto_temperature,
    build_problem,
    contributions,
    difficulties,
    mean_contributions,
    visatb_weights,
    weigh,
    weight_components,
)

PAPER = json.loads((Path(__file__).parent / "paper_tables.json").read_text(encoding="utf-8"))
TABLE5 = PAPER["table5"]
C_OUT, C_IN = np.array(TABLE5["c_out"]), np.array(TABLE5["c_in"])
DIFFICULTY = 1 - np.array(TABLE5["one_minus_d"])


def softmax_by_hand(scores, temperature):
    powers = [np.exp(score / temperature) for score in scores]
    return [len(scores) * power / sum(powers) for power in powers]


def small_matrix(**changes):
    matrix = {
        "tasks": ["A", "B", "C"],
        "mini": {"A": 0.3, "B": 0.5, "C": 0.6},
        "plus_mini": {
            "A": {"A": 0.6, "B": 0.55, "C": 0.61},
            "B": {"A": 0.36, "B": 0.7, "C": 0.63},
            "C": {"A": 0.33, "B": 0.48, "C": 0.7},
        },
    }
    return {**matrix, **changes}


def solved(matrix, **options):
    build = {key: options.pop(key) for key in ("form", "difficulty", "groups", "fixed") if key in options}
    return weigh(build_problem(matrix, **build), **{"bootstrap": 0, **options})


def test_table_5_of_the_paper():
    parts = weight_components(C_OUT, C_IN, DIFFICULTY, 0.5)
    for part, name in zip(parts, ("out", "in", "difficulty"), strict=True):
        np.testing.assert_allclose(part, TABLE5[name], rtol=0, atol=5e-5)
    weights = visatb_weights(C_OUT, C_IN, DIFFICULTY, 0.5, (0.25, 0.25, 0.5))
    np.testing.assert_allclose(weights, TABLE5["weights"], rtol=0, atol=5e-5)


def test_table_2_of_the_paper_combines_its_components():
    table = PAPER["table2"]
    parts = [np.array(table[name]) for name in ("out", "in", "difficulty")]
    np.testing.assert_allclose(0.25 * parts[0] + 0.25 * parts[1] + 0.5 * parts[2], table["weights"], rtol=0, atol=1e-4)
    # The components invert to scores (up to a constant), so the whole of Eq. 4-8 can be run on them.
    scores = [np.log(part) for part in parts]
    weights = visatb_weights(scores[0], -scores[1], scores[2], 1.0)
    np.testing.assert_allclose(weights, table["weights"], rtol=0, atol=1.5e-4)


def test_contributions_and_difficulties_by_hand():
    content = solved(small_matrix())
    expected = [[1, 0.25, 0.1], [0.2, 1, 0.3], [0.1, -0.1, 1]]
    np.testing.assert_allclose(content["contributions"], expected, atol=1e-12)
    assert content["mean_contributions"]["out"] == pytest.approx({"A": 0.175, "B": 0.25, "C": 0.0})
    assert content["mean_contributions"]["in"] == pytest.approx({"A": 0.15, "B": 0.075, "C": 0.2})
    assert content["difficulties"] == pytest.approx({"A": 0.5, "B": 2 / 7, "C": 1 / 7})
    out, inward = softmax_by_hand([0.175, 0.25, 0.0], 0.5), softmax_by_hand([-0.15, -0.075, -0.2], 0.5)
    hard = softmax_by_hand([0.5, 2 / 7, 1 / 7], 0.5)
    weights = [0.25 * o + 0.25 * i + 0.5 * d for o, i, d in zip(out, inward, hard, strict=True)]
    assert list(content["weights"].values()) == pytest.approx(weights)
    assert list(content["components"]["in"].values()) == pytest.approx(inward)


def test_lower_is_better_turns_difficulty_over_but_not_contribution():
    """An error rate that falls from 0.5 to 0.2: D = 1 − 0.2/0.5; a fall to 0.41 is 0.3 of that gain."""
    matrix = small_matrix(higher_is_better={"B": False})
    matrix["plus_mini"] = {
        "A": {"A": 0.6, "B": 0.41, "C": 0.61},
        "B": {"A": 0.36, "B": 0.2, "C": 0.63},
        "C": {"A": 0.33, "B": 0.53, "C": 0.7},
    }
    content = solved(matrix)
    assert [row[1] for row in content["contributions"]] == pytest.approx([0.3, 1.0, -0.1])
    assert content["difficulties"]["B"] == pytest.approx(0.6)
    matrix["plus_mini"]["B"]["B"] = 0.52
    with pytest.raises(WeightingError, match=r"B: plus_mini:B gives 0\.52, mini 0\.5, a gain of -0\.02"):
        solved(matrix)


def test_groups_average_over_their_tasks():
    matrix = {
        "tasks": ["A", "B", "C"],
        "mini": {"A": 0.2, "B": 0.4, "C": 0.5},
        "plus_mini": {"G": {"A": 0.4, "B": 0.8, "C": 0.6}, "H": {"A": 0.25, "B": 0.7, "C": 1.0}},
    }
    content = solved(matrix, groups={"G": ["A", "B"], "H": ["C"]})
    # G → H: 0.1 / 0.5; H → G: mean of 0.05 / 0.2 and 0.3 / 0.4
    np.testing.assert_allclose(content["contributions"], [[1, 0.2], [0.5, 1]])
    assert content["difficulties"] == pytest.approx({"G": 0.5, "H": 0.5})
    assert content["weights"]["A"] == content["weights"]["B"] != content["weights"]["C"]
    out = softmax_by_hand([0.2, 0.5], 0.5)
    inward = softmax_by_hand([-0.5, -0.2], 0.5)
    assert content["weights"]["A"] == pytest.approx(0.25 * out[0] + 0.25 * inward[0] + 0.5)


def test_precise_difficulty_uses_the_single_task_models():
    matrix = small_matrix(
        single_mini={"A": 0.1, "B": 0.4, "C": 0.3},
        single={t: {t: v} for t, v in {"A": 0.5, "B": 0.8, "C": 0.4}.items()},
    )
    real, precise = solved(matrix), solved(matrix, difficulty="precise")
    assert precise["difficulties"] == pytest.approx({"A": 0.8, "B": 0.5, "C": 0.25})
    assert precise["contributions"] == real["contributions"]


def test_simple_form_needs_no_minis_in_the_proxies():
    matrix = {
        "tasks": ["A", "B"],
        "base": {"A": 0.1, "B": 0.2},
        "single": {"A": {"A": 0.5, "B": 0.3}, "B": {"A": 0.2, "B": 0.6}},
        "single_mini": {"A": 0.4, "B": 0.3},
    }
    content = solved(matrix, form="simple")
    np.testing.assert_allclose(content["contributions"], [[1, 0.25], [0.25, 1]])
    assert content["difficulties"] == pytest.approx({"A": 0.2, "B": 0.5})


def test_fixed_tasks_stand_outside_n():
    free = solved(small_matrix())
    fixed = solved(small_matrix(), fixed={"ShareGPT": 1.0})
    assert fixed["tasks"] == ["A", "B", "C", "ShareGPT"]
    assert fixed["weights"] == {**free["weights"], "ShareGPT": 1.0}
    # A fixed task may stand in the matrix's order; its place is kept and its figures are not read.
    listed = solved(small_matrix(tasks=["A", "S", "B", "C"]), fixed={"S": 0.7})
    assert listed["tasks"] == ["A", "S", "B", "C"]
    assert listed["weights"] == {**free["weights"], "S": 0.7}


def test_auto_temperature_on_table_5():
    chosen = auto_temperature(C_OUT, C_IN, DIFFICULTY)
    assert chosen == pytest.approx(0.347, abs=5e-4)

    def extremes(t):
        weights = visatb_weights(C_OUT, C_IN, DIFFICULTY, t)
        return weights.min(), weights.max()

    low, high = extremes(chosen - 1e-6)
    assert low < 0.5 or high > 2
    for temperature in np.geomspace(chosen, 100, 500):
        low, high = extremes(temperature)
        assert 0.5 <= low <= high <= 2


vectors = st.integers(2, 8).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(-3, 3), min_size=n, max_size=n).map(np.array) for _ in range(3)])
)


@given(vectors, st.floats(0.05, 10))
@settings(max_examples=60, deadline=None)
def test_weights_have_mean_1_and_do_not_see_a_common_shift(scores, temperature):
    weights = visatb_weights(*scores, temperature)
    assert weights.mean() == pytest.approx(1)
    shifted = visatb_weights(scores[0] + 2, scores[1] - 1, scores[2] + 0.5, temperature)
    np.testing.assert_allclose(shifted, weights, rtol=1e-8, atol=1e-12)


def test_auto_temperature_stops_at_its_lowest():
    """Scores that are all alike, or nearly, give weights of 1 at any T: then the lowest, 0.1, is the answer."""
    alike = np.full(3, 0.4)
    assert auto_temperature(alike, alike, alike) == 0.1
    nearly = np.array([0.4, 0.41, 0.42])
    assert auto_temperature(nearly, nearly, nearly) == 0.1
    assert solved(small_matrix(), temperature="auto")["temperature"] > 0.1


@given(vectors)
@settings(max_examples=40, deadline=None)
def test_auto_temperature_keeps_its_promise(scores):
    chosen = auto_temperature(*scores)
    assert chosen >= 0.1
    for temperature in chosen * np.geomspace(1, 50, 60):
        weights = visatb_weights(*scores, temperature)
        assert weights.min() >= 0.5 - 1e-9
        assert weights.max() <= 2 + 1e-9


def test_functions_take_leading_dimensions():
    rng = np.random.default_rng(1)
    reached, start = rng.uniform(1, 2, (5, 3, 3)), rng.uniform(0, 0.5, (5, 3))
    together = contributions(reached, start)
    apart = np.stack([contributions(a, b) for a, b in zip(reached, start, strict=True)])
    np.testing.assert_array_equal(together, apart)
    for task in range(3):  # Eq. 3 spelled out
        own = reached[:, task, task] - start[:, task]
        np.testing.assert_allclose(together[:, 1, task], (reached[:, 1, task] - start[:, task]) / own)
    low, high = rng.uniform(0.1, 1, (5, 3)), rng.uniform(1, 2, (5, 3))
    np.testing.assert_allclose(difficulties(low, high), 1 - low / high)
    c_out, c_in = mean_contributions(together)
    np.testing.assert_allclose(c_out[:, 0], together[:, 0, 1:].mean(axis=1))
    np.testing.assert_allclose(c_in[:, 0], together[:, 1:, 0].mean(axis=1))


@pytest.mark.parametrize("alpha", [(0.5, 0.5, 0.5), (1.5, -0.5, 0), (1.0, 0.0), (np.nan, 0.5, 0.5)])
def test_alpha_must_sum_to_1(alpha):
    with pytest.raises(WeightingError, match="sum to 1"):
        visatb_weights(C_OUT, C_IN, DIFFICULTY, 0.5, alpha)


def test_a_third_may_be_written_as_033():
    thirds = visatb_weights(C_OUT, C_IN, DIFFICULTY, 0.5, (1 / 3, 1 / 3, 1 / 3))
    np.testing.assert_allclose(visatb_weights(C_OUT, C_IN, DIFFICULTY, 0.5, (0.33, 0.33, 0.33)), thirds)


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, np.inf])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(WeightingError, match="temperature"):
        visatb_weights(C_OUT, C_IN, DIFFICULTY, temperature)
