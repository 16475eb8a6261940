"""The noise of training in the intervals, and weights shrunken by what is noise: by hand and in the limits."""

import json

import numpy as np
import pytest

from tests.weighting.test_command import run, write
from tests.weighting.test_method import small_matrix, solved
from tests.weighting.test_uncertainty import paired_samples
from weighting_visatb import WeightingError, build_problem, reliability, shrink, training_noise, visatb_weights, weigh

MINI = {"A": [0.2, 0.3, 0.4], "B": [0.5, 0.4, 0.6], "C": [0.6, 0.65, 0.55]}


def errors(value, mini=None, repeats=1):
    rows = {i: dict.fromkeys("ABC", value) for i in "ABC"}
    one = value if mini is None else mini
    return {"mini": {t: [one] * repeats if repeats > 1 else one for t in "ABC"}, "plus_mini": rows}


def repeated(mini=MINI, error=0.01):
    return small_matrix(mini=mini, stderr=errors(error, repeats=3))


def test_without_repeats_the_intervals_are_called_questions_only(tmp_path, capsys):
    path = write(tmp_path / "m.json", small_matrix(stderr=errors(0.01)))
    assert run(path, "--output", tmp_path / "w.json") == 0
    content = json.loads((tmp_path / "w.json").read_text())
    assert content["interval_kind"] == "questions only"
    assert set(content["uncertainty"]) == {"questions"}
    assert content["uncertainty"]["questions"]["weights"] == content["intervals"]
    assert "training_noise" not in content
    assert "1000 draws: questions only)" in capsys.readouterr().out
    assert "`repeats: {proxies: {mini: 3}}`" in content["warnings"][-1]
    assert "the cost of training the mini model twice more" in content["warnings"][-1]


def test_with_repeats_the_file_holds_both_kinds(tmp_path, capsys):
    path = write(tmp_path / "m.json", repeated())
    assert run(path, "--output", tmp_path / "w.json") == 0
    content = json.loads((tmp_path / "w.json").read_text())
    assert content["interval_kind"] == "questions and training"
    assert list(content["uncertainty"]) == ["questions", "both"]
    questions, both = content["uncertainty"].values()
    assert content["intervals"] == both["weights"]
    for task in "ABC":
        for key in ("weights", "difficulties"):
            assert both[key][task]["low"] < questions[key][task]["low"]
            assert both[key][task]["high"] > questions[key][task]["high"]
    shapes = {
        "components": {"out", "in", "difficulty"},
        "mean_contributions": {"out", "in"},
        "difficulties": set("ABC"),
    }
    assert {key: set(both[key]) for key in shapes} == shapes
    assert np.shape(both["contributions"]) == (3, 3)
    out = capsys.readouterr().out
    assert "draws: questions and training)" in out
    assert "95% from, questions" in out
    assert not any("questions only" in text for text in content["warnings"])


def test_the_variance_between_repeats_by_hand():
    """Squared deviations .01 and .01 and .0025 over errors of .01 and .02: 100, 100 and 6.25 in units of the errors."""
    matrix = small_matrix(mini=MINI, stderr=errors(0.01, repeats=3))
    matrix["stderr"]["mini"]["C"] = [0.02] * 3
    found = training_noise(build_problem(matrix), {})
    # Of A, B, C: mean 68.75, variance 2929.7, of which chance (2 degrees of freedom: 2/2) explains all.
    assert found.freedom.tolist() == [6, 6, 6]
    np.testing.assert_allclose(found.between, 206.25 / 3)
    np.testing.assert_allclose(found.unit[0], [0.01, 0.01, 0.02])
    np.testing.assert_allclose(found.variance()[0], 68.75 * np.array([0.01, 0.01, 0.02]) ** 2 / 3)
    np.testing.assert_allclose(found.variance()[1], 68.75 * 1e-4)  # models trained once have it, too
    said = solved(matrix, bootstrap=20)["training_noise"]["C"]
    assert said["degrees_of_freedom"] == 6
    assert said["standard_deviation"]["mini"] == pytest.approx(68.75**0.5 * 0.02)


def test_tasks_that_differ_beyond_chance_lend_each_other_little():
    many = 41
    mini = {t: (0.4 + s * np.linspace(-1, 1, many)).tolist() for t, s in (("A", 0.01), ("B", 0.02), ("C", 0.08))}
    found = training_noise(build_problem(small_matrix(mini=mini, stderr=errors(0.01, repeats=many))), {})
    squares = np.array([np.var(mini[task], ddof=1) for task in "ABC"]) / 1e-4
    apart = (squares.var(ddof=1) / squares.mean() ** 2 - 2 / 40) / (1 + 2 / 40)
    lent = 2 / apart
    assert 0 < lent < 2
    others = (squares.sum() - squares) / 2
    np.testing.assert_allclose(found.freedom, 40 + lent)
    np.testing.assert_allclose(found.between, (40 * squares + lent * others) / (40 + lent))


def test_few_repeats_give_students_t():
    """Draws of two repeats' noise, over three tasks of equal noise, are Student's t with 3 degrees of freedom."""
    mini = {"A": [0.2, 0.4], "B": [0.4, 0.6], "C": [0.5, 0.7]}
    found = training_noise(build_problem(small_matrix(mini=mini, stderr=errors(0.01, repeats=2))), {})
    assert found.freedom.tolist() == [3, 3, 3]
    drawn = found.draw(40_000, seed=0) / np.sqrt(found.variance())
    np.testing.assert_allclose(np.percentile(drawn, 97.5, axis=0), 3.182, rtol=0.05)
    np.testing.assert_allclose(np.percentile(drawn, 75, axis=0), 0.765, rtol=0.05)


def test_the_questions_part_of_the_variance_between_repeats_is_taken_out():
    """Repeats whose only difference is chance in single answers, equally many right: no noise of training."""
    matrix, samples = paired_samples(400)
    rng = np.random.default_rng(3)
    for task in "ABC":
        right = rng.uniform(size=(3, 400)) < 0.4
        for name, answers in zip(("mini", "mini#2", "mini#3"), right, strict=True):
            samples[task][name] = np.stack([answers.astype(float), np.ones(400)])
        matrix["mini"][task] = right.mean(axis=1).tolist()
        matrix["stderr"]["mini"][task] = (right.std(axis=1, ddof=1) / 20).tolist()
    problem = build_problem(matrix)
    found, blind = training_noise(problem, samples), training_noise(problem, {})
    np.testing.assert_allclose(found.interaction, 1, rtol=0.15)  # every answer is drawn alone
    assert blind.interaction.tolist() == [0, 0, 0]
    assert (found.variance() < blind.variance()).all()
    both, alone = weigh(problem, samples=samples, bootstrap=300), weigh(problem, bootstrap=300)
    for task in "ABC":
        width = [v["intervals"][task]["high"] - v["intervals"][task]["low"] for v in (both, alone)]
        assert width[0] < width[1]


def test_a_base_model_has_no_noise_of_training():
    single = {i: {j: [0.6, 0.7] for j in "ABC"} for i in "ABC"}
    matrix = {"tasks": list("ABC"), "base": dict.fromkeys("ABC", 0.2), "single": single}
    matrix["single_mini"] = dict.fromkeys("ABC", 0.4)
    matrix["stderr"] = {
        "base": dict.fromkeys("ABC", 0.01),
        "single_mini": dict.fromkeys("ABC", 0.01),
        "single": {i: {j: [0.01, 0.01] for j in "ABC"} for i in "ABC"},
    }
    problem = build_problem(matrix, form="simple")
    variance = training_noise(problem, {}).variance()
    assert not variance[0].any()
    np.testing.assert_allclose(variance[1:4], 25e-4)  # 0.005 between two runs, for the mean of two
    np.testing.assert_allclose(variance[4], 50e-4)  # trained once
    once = {**matrix, "single": {i: dict.fromkeys("ABC", 0.6) for i in "ABC"}}
    once["stderr"] = {**matrix["stderr"], "single": {i: dict.fromkeys("ABC", 0.01) for i in "ABC"}}
    warning = solved(once, form="simple", bootstrap=20, on_degenerate="clip")["warnings"][-1]
    assert "{single_mini: 3}" in warning
    assert "each single_mini model" in warning


def test_a_gain_within_the_noise_of_training_is_a_warning():
    said = [text.partition(":")[0] for text in solved(repeated())["warnings"] if "two standard errors" in text]
    assert said == ["B", "C"]  # gains 0.3, 0.2 and 0.1 against 0.202
    assert not solved(small_matrix(stderr=errors(0.01)))["warnings"]


def test_on_which_side_of_1_each_weight_is():
    content = solved(small_matrix(stderr=errors(0.01)), bootstrap=400)
    for task, interval in content["intervals"].items():
        expected = "above 1" if interval["low"] > 1 else "below 1" if interval["high"] < 1 else "not told apart from 1"
        assert content["side_of_1"][task] == expected
    assert set(content["side_of_1"].values()) == {"above 1", "below 1", "not told apart from 1"}
    assert "side_of_1" not in solved(small_matrix())


def test_reliability_and_shrinkage_by_hand():
    """Scores 0, 1, 2: variance 1. Noise of 0.2 each: 0.6 over N − 1 is 0.3, so 0.7 of each distance is left."""
    scores = np.array([0.0, 1.0, 2.0])
    assert reliability(scores, np.full(3, 0.2)) == pytest.approx(0.7)
    np.testing.assert_allclose(shrink(scores, 0.7), [0.3, 1.0, 1.7])
    assert reliability(scores, np.zeros(3)) == 1
    assert reliability(scores, np.full(3, 0.7)) == 0
    assert reliability(np.array([0.0, np.nan, 2.0]), np.array([0.5, np.nan, 0.5])) == pytest.approx(0.5)


def test_shrunken_weights_come_from_shrunken_scores():
    content = solved(small_matrix(stderr=errors(0.005)), bootstrap=500, shrinkage="auto")
    plain = solved(small_matrix(stderr=errors(0.005)), bootstrap=500)
    both = content["shrinkage"]
    assert content["weights"] == both["weights"]["auto"]
    assert plain["weights"] == both["weights"]["none"] == plain["shrinkage"]["weights"]["none"]
    assert plain["shrinkage"]["weights"] == both["weights"]
    measured = [*plain["mean_contributions"].values(), plain["difficulties"]]
    moved = []
    for share, scores in zip(both["reliability"].values(), measured, strict=True):
        assert 0 < share < 1
        mean = sum(scores.values()) / 3
        moved.append([mean + share * (value - mean) for value in scores.values()])
    assert list(content["weights"].values()) == pytest.approx(visatb_weights(*np.array(moved)).tolist())
    total = sum(
        share * np.array(list(content["components"][name].values())) for name, share in content["alpha"].items()
    )
    assert list(content["weights"].values()) == pytest.approx(total.tolist())
    assert content["intervals"] == plain["intervals"]  # of the plain weights, under either


def test_shrinkage_in_its_two_limits():
    sure = solved(small_matrix(stderr=errors(1e-9)), bootstrap=100, shrinkage="auto")
    assert sure["weights"] == pytest.approx(solved(small_matrix())["weights"], abs=1e-6)
    lost = solved(small_matrix(stderr=errors(10.0)), bootstrap=400, shrinkage="auto", on_degenerate="drop")
    assert lost["weights"] == pytest.approx(dict.fromkeys("ABC", 1.0))
    assert set(lost["side_of_1"].values()) == {"not told apart from 1"}


def test_shrinkage_needs_noise_to_go_by(tmp_path, capsys):
    with pytest.raises(WeightingError, match="--shrink auto weighs"):
        solved(small_matrix(stderr=errors(0.01)), shrinkage="auto")
    assert run(write(tmp_path / "m.json", small_matrix()), "--shrink", "auto") == 2
    assert "give standard errors or per-sample scores" in capsys.readouterr().err


def test_old_matrices_give_the_digits_they_gave():
    """Figures of the program as it was before it knew repeats."""
    content = solved(small_matrix(stderr=errors(0.01)), bootstrap=200, seed=4)
    assert content["weights"] == {"A": 1.206819402471388, "B": 1.044534347977769, "C": 0.748646249550843}
    ends = {task: (interval["low"], interval["high"]) for task, interval in content["intervals"].items()}
    assert ends == {
        "A": (1.1288123272246278, 1.270767364661719),
        "B": (0.9641760502431643, 1.1213634729247293),
        "C": (0.6750693324575312, 0.8505079093335318),
    }
    matrix, samples = paired_samples(60)
    content = weigh(build_problem(matrix), samples=samples, bootstrap=100, seed=1, on_degenerate="clip")
    assert content["weights"] == {"A": 1.2028175473814127, "B": 1.0692126608629362, "C": 0.7279697917556511}
    assert content["intervals"]["B"] == {
        "low": 0.8663231518534911,
        "high": 1.289629009854749,
        "level": 0.95,
        "share_above_1": 0.63,
    }
