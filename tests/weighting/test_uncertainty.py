"""Degenerate matrices by name and policy, and how sure the weights are."""

import logging
import re

import numpy as np
import pytest

from tests.weighting.test_method import small_matrix, softmax_by_hand, solved
from weighting_visatb import WeightingError, build_problem, denominator_noise, draw, weigh


def without_gain():
    """C is not helped by its own data: a zero denominator."""
    matrix = small_matrix()
    matrix["plus_mini"]["C"]["C"] = 0.6
    return matrix


def test_a_missing_gain_is_named_with_its_numbers():
    with pytest.raises(WeightingError, match=r"C: plus_mini:C gives 0\.6, mini 0\.6, a gain of 0"):
        solved(without_gain())


def test_missing_cells_are_all_named():
    matrix = small_matrix()
    del matrix["plus_mini"]["A"]["B"], matrix["mini"]["C"]
    with pytest.raises(WeightingError, match="no figure of mini on C; no figure of plus_mini:A on B"):
        solved(matrix)


@pytest.mark.parametrize("policy", ["error", "drop", "clip"])
def test_a_hole_is_an_error_under_every_policy(policy):
    matrix = small_matrix()
    del matrix["plus_mini"]["A"]["B"]
    with pytest.raises(WeightingError, match="no figure of plus_mini:A on B; score every model on every task"):
        solved(matrix, on_degenerate=policy)


def test_remedies_are_named_as_flag_and_as_key_of_an_experiment_file():
    for matrix in (without_gain(), small_matrix(mini=dict.fromkeys("ABC", 0.0))):
        with pytest.raises(WeightingError, match=r"--on_degenerate drop .*`weighting: \{on_degenerate: drop\}`"):
            solved(matrix)


def test_many_holes_are_some_and_a_count():
    tasks = [f"t{k}" for k in range(30)]
    with pytest.raises(WeightingError) as caught:
        solved({"tasks": tasks})
    assert str(caught.value).startswith("incomplete: no figure of mini on t0, t1, t2 and 27 more; ")
    assert "and of 26 more models" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_five_holes_are_all_there_are():
    with pytest.raises(WeightingError, match="no figure of plus_mini:t3 on ") as caught:
        solved({"tasks": [f"t{k}" for k in range(4)]})
    assert "more models" not in str(caught.value)


def test_a_start_that_scores_0_everywhere_is_refused():
    matrix = small_matrix(mini=dict.fromkeys("ABC", 0.0))
    with pytest.raises(WeightingError, match="mini scores 0 on every task"):
        solved(matrix)
    content = solved(matrix, on_degenerate="drop")
    assert list(content["difficulties"].values()) == [1, 1, 1]
    assert [text.partition(";")[0] for text in content["warnings"]] == [f"{task}: mini scores 0" for task in "ABC"]
    one = solved(small_matrix(mini={"A": 0.0, "B": 0.5, "C": 0.6}))
    assert [text.partition(";")[0] for text in one["warnings"]] == ["A: mini scores 0"]
    errors = small_matrix(mini=dict.fromkeys("ABC", 0.0), higher_is_better=dict.fromkeys("ABC", False))
    errors["plus_mini"] = {i: dict.fromkeys("ABC", -0.1) for i in "ABC"}
    with pytest.raises(WeightingError, match="divides by 0"):  # no errors at all is no collapse
        solved(errors)


def counted(**counts):
    return {"questions": 100, "empty": 0, "distinct": 9, "most_common": 20, "same_truth": 20, "text": "a"} | counts


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (counted(), None),
        (counted(most_common=94), None),
        (counted(most_common=95), "gives one answer, 'a', to 95 of 100 questions"),
        (counted(most_common=98, same_truth=95), None),  # nearly all truths are this answer: no wonder
        (counted(empty=50, most_common=50), "gives an empty answer to 50 of 100 questions"),
        (counted(empty=49, most_common=49), None),
        ({"questions": 9, "empty": 9, "distinct": 1, "most_common": 9, "same_truth": 0}, None),
    ],
)
def test_equal_and_empty_answers_are_a_warning(counts, said):
    content = solved(small_matrix(answers={"plus_mini": {"B": {"C": counts}}}))
    assert content["warnings"] == ([] if said is None else [f"C: plus_mini:B {said}; {THAT}"])
    assert content["weights"] == solved(small_matrix())["weights"]


THAT = "the figures that rest on it say little about what it has learnt"


def test_a_zero_divisor_of_the_difficulty_is_an_error():
    matrix = small_matrix(mini={"A": -0.1, "B": 0.5, "C": 0.6})
    matrix["plus_mini"]["A"]["A"] = 0.0
    with pytest.raises(WeightingError, match="A: its difficulty divides by 0"):
        solved(matrix)


def test_drop_takes_a_column_out_of_every_mean():
    content = solved(without_gain(), on_degenerate="drop")
    assert [row[2] for row in content["contributions"]] == [None, None, None]
    out = content["mean_contributions"]["out"]
    assert out == pytest.approx({"A": 0.25, "B": 0.2, "C": (0.1 - 0.1) / 2})  # of columns A and B only
    assert content["mean_contributions"]["in"]["C"] is None
    inward = content["components"]["in"]
    assert inward["C"] == 1.0
    assert [inward["A"], inward["B"]] == pytest.approx(softmax_by_hand([-0.15, -0.075], 0.5))
    assert sum(content["weights"].values()) == pytest.approx(3)


def test_drop_is_of_no_help_where_nothing_is_left():
    matrix = small_matrix()
    for task in "BC":
        matrix["plus_mini"][task][task] = 0.1
    with pytest.raises(WeightingError, match="no C_out remains"):
        solved(matrix, on_degenerate="drop")


def test_clip_raises_the_denominator_to_two_standard_errors():
    spread = {"mini": dict.fromkeys("ABC", 0.03), "plus_mini": {i: dict.fromkeys("ABC", 0.04) for i in "ABC"}}
    content = solved({**without_gain(), "stderr": spread}, on_degenerate="clip")
    assert [row[2] for row in content["contributions"]] == pytest.approx([0.1, 0.3, 0.0])  # 0.01, 0.03, 0 over 0.1
    with pytest.raises(WeightingError, match="clip needs standard errors"):
        solved(without_gain(), on_degenerate="clip")


def test_a_gain_within_two_standard_errors_is_a_warning(caplog):
    spread = {"mini": dict.fromkeys("ABC", 0.03), "plus_mini": {i: dict.fromkeys("ABC", 0.05) for i in "ABC"}}
    content = solved(small_matrix(stderr=spread))
    assert [record.message.split(":")[0] for record in caplog.records] == ["C"]  # gains 0.3, 0.2, 0.1 against 0.117
    assert content["warnings"] == [caplog.records[0].message]


def test_weights_outside_the_range_are_a_warning(caplog):
    solved(small_matrix(), temperature=0.05)
    assert any("outside [0.5, 2]" in record.message for record in caplog.records)


def test_no_standard_errors_no_intervals(caplog):
    assert "intervals" not in solved(small_matrix(), bootstrap=100)
    assert "no intervals" in caplog.text


def test_a_cell_that_the_form_does_not_read_needs_no_standard_error():
    """Precise difficulty reads `single` on its own task only."""
    own = {"A": 0.6, "B": 0.7, "C": 0.8}
    low = {"A": 0.1, "B": 0.4, "C": 0.3}
    matrix = small_matrix(single={task: {task: value} for task, value in own.items()}, single_mini=low)
    spread = {row: dict.fromkeys("ABC", 0.01) for row in ("mini", "single_mini")}
    spread["plus_mini"] = {unit: dict.fromkeys("ABC", 0.01) for unit in "ABC"}
    spread["single"] = {unit: {unit: 0.01} for unit in "ABC"}
    assert "intervals" in solved({**matrix, "stderr": spread}, difficulty="precise", bootstrap=50)


def test_intervals_from_standard_errors_narrow_to_the_weights():
    def content(error):
        spread = {"mini": dict.fromkeys("ABC", error), "plus_mini": {i: dict.fromkeys("ABC", error) for i in "ABC"}}
        return solved(small_matrix(stderr=spread), bootstrap=400)

    wide, narrow = content(0.01), content(1e-6)
    for task, weight in wide["weights"].items():
        a, b = wide["intervals"][task], narrow["intervals"][task]
        assert a["low"] < weight < a["high"]
        assert b["high"] - b["low"] < 1e-3 * (a["high"] - a["low"])
        assert b["low"] == pytest.approx(weight, abs=1e-4)
        assert narrow["intervals"][task]["share_above_1"] == float(weight > 1)


def paired_samples(n=4000, seed=0):
    """Models that answer the same questions; a question's own difficulty is most of the noise."""
    rng = np.random.default_rng(seed)
    matrix, samples = small_matrix(), {}
    for task in "ABC":
        ease = rng.uniform(size=n)
        rows = {"mini": matrix["mini"][task]}
        rows |= {f"plus_mini:{unit}": matrix["plus_mini"][unit][task] for unit in "ABC"}
        samples[task] = {m: np.stack([(ease < share).astype(float), np.ones(n)]) for m, share in rows.items()}
        matrix["mini"][task] = samples[task]["mini"][0].mean()
        for unit in "ABC":
            matrix["plus_mini"][unit][task] = samples[task][f"plus_mini:{unit}"][0].mean()
    spread = {
        "mini": {t: samples[t]["mini"][0].std(ddof=1) / n**0.5 for t in "ABC"},
        "plus_mini": {u: {t: samples[t][f"plus_mini:{u}"][0].std(ddof=1) / n**0.5 for t in "ABC"} for u in "ABC"},
    }
    return {**matrix, "stderr": spread}, samples


@pytest.mark.parametrize("questions", [2, 4000])
def test_paired_noise_is_that_of_the_differences(questions):
    matrix, samples = paired_samples(questions)
    noise = denominator_noise(build_problem(matrix), samples)
    for column, task in enumerate("ABC"):
        gain = samples[task][f"plus_mini:{task}"][0] - samples[task]["mini"][0]
        assert noise[column] == pytest.approx(gain.std(ddof=1) / len(gain) ** 0.5)
    unpaired = denominator_noise(build_problem(matrix), {})
    assert (noise <= unpaired).all()
    assert (noise < unpaired).any()


def test_the_bootstrap_draws_the_same_questions_for_every_model():
    matrix, samples = paired_samples()
    problem = build_problem(matrix)
    drawn = draw(problem, samples, 500, seed=3)
    gains = problem.denominators(drawn)
    np.testing.assert_allclose(gains.std(axis=0), denominator_noise(problem, samples), rtol=0.12)
    np.testing.assert_allclose(drawn.mean(axis=0), problem.values, atol=2e-3)
    paired = weigh(problem, samples=samples, bootstrap=500)["intervals"]
    unpaired = weigh(problem, bootstrap=500)["intervals"]
    for task in "ABC":
        assert paired[task]["high"] - paired[task]["low"] < unpaired[task]["high"] - unpaired[task]["low"]


def test_a_weighted_metric_is_resampled_as_a_ratio():
    """Corpus GLEU is Σ w·v / Σ w: a question of weight 0 never counts."""
    matrix, samples = paired_samples(200)
    for models in samples.values():
        for model, (values, weights) in models.items():
            models[model] = np.stack([np.r_[values, 0.5], np.r_[weights, 0.0]])
    problem = build_problem(matrix)
    drawn = draw(problem, samples, 300, seed=0)
    np.testing.assert_allclose(drawn.mean(axis=0), problem.values, atol=0.01)


def test_degenerate_draws_are_counted_not_hidden(caplog):
    spread = {"mini": dict.fromkeys("ABC", 0.05), "plus_mini": {i: dict.fromkeys("ABC", 0.05) for i in "ABC"}}
    with caplog.at_level(logging.WARNING):
        content = solved(small_matrix(stderr=spread), bootstrap=400)
    assert "of the bootstrap draws are degenerate" in caplog.text
    assert set(content["intervals"]) == set("ABC")
    left = re.search(r"([\d.]+)% of the bootstrap .* conditional on the other ([\d.]+)%", " ".join(content["warnings"]))
    assert content["draws"]["made"] == 400
    assert float(left[2]) == pytest.approx(content["draws"]["kept"] / 4, abs=0.051)
    assert float(left[1]) == pytest.approx(100 - content["draws"]["kept"] / 4, abs=0.051)
    assert 0 < content["draws"]["kept"] < 400
    assert content["warnings"][-1].startswith("the intervals are over the choice of validation questions only")


def test_intervals_are_the_central_95_percent_of_the_draws():
    """Against percentiles of the draws pushed through the whole computation one by one."""
    spread = {"mini": dict.fromkeys("ABC", 0.005), "plus_mini": {i: dict.fromkeys("ABC", 0.005) for i in "ABC"}}
    matrix = small_matrix(stderr=spread)
    problem = build_problem(matrix)
    by_hand = []
    for values in draw(problem, {}, 200, seed=0):
        rows = [dict(zip("ABC", row.tolist(), strict=True)) for row in values]
        one = solved({"tasks": list("ABC"), "mini": rows[0], "plus_mini": dict(zip("ABC", rows[1:], strict=True))})
        by_hand.append(list(one["weights"].values()))
    ordered = np.sort(by_hand, axis=0)
    intervals = weigh(problem, bootstrap=200)["intervals"]
    for column, task in enumerate("ABC"):
        # percentile p of 200 draws lies (200 − 1)·p/100 places from the lowest
        low = ordered[4, column] + 0.975 * (ordered[5, column] - ordered[4, column])
        high = ordered[194, column] + 0.025 * (ordered[195, column] - ordered[194, column])
        assert (intervals[task]["low"], intervals[task]["high"]) == pytest.approx((low, high))
