"""Models that were trained more than once: lists in the matrix's cells, `mini#2` among the score files."""

import json

import numpy as np
import pytest

from eval import qa
from eval.collect import EvaluationError, collect
from tests.weighting.test_command import answer_file, run, write
from tests.weighting.test_method import small_matrix, solved
from tests.weighting.test_uncertainty import paired_samples
from weighting_visatb import WeightingError, build_problem, denominator_noise, draw

MINI = {"A": [0.2, 0.3, 0.4], "B": [0.5, 0.4, 0.6], "C": [0.6, 0.65, 0.55]}  # means: those of small_matrix


def test_weights_come_from_the_means_over_repeats():
    repeated, once = solved(small_matrix(mini=MINI)), solved(small_matrix())
    assert repeated["weights"] == pytest.approx(once["weights"], rel=1e-12)
    np.testing.assert_allclose(repeated["contributions"], once["contributions"], atol=1e-12)


def test_a_list_of_one_is_a_number():
    listed = {task: [value] for task, value in small_matrix()["mini"].items()}
    errors = {"mini": dict.fromkeys("ABC", 0.01), "plus_mini": {i: dict.fromkeys("ABC", 0.01) for i in "ABC"}}
    of_one = {**errors, "mini": {task: [0.01] for task in "ABC"}}
    one, plain = small_matrix(mini=listed, stderr=of_one), small_matrix(stderr=errors)
    assert solved(one, bootstrap=50) == solved(plain, bootstrap=50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mini": {**MINI, "B": [0.5, 0.5]}}, "no figure of mini#3 on B; score every model"),
        ({"mini": {**MINI, "B": [0.5, None, 0.5]}}, "no figure of mini#2 on B; score every model"),
        ({"mini": {**MINI, "B": 0.5}}, "no figure of mini#2 on B; no figure of mini#3 on B; score"),
        ({"mini": {**MINI, "B": []}}, "the matrix: mini on B is an empty list"),
        ({"mini": {**MINI, "B": [0.5, "x", 1]}}, "mini#2 on B must be a finite number"),
        ({"mini": {**MINI, "B": [0.5, [0.5], 1]}}, "mini#2 on B must be a finite number"),
        ({"mini": MINI, "stderr": {"mini": {"A": 0.1}}}, "`stderr`: mini on A has 1 for 3 repeats"),
        ({"answers": {"mini": {"A": [None, {"empty": 1}]}}}, "mini#2 on A must give questions, empty"),
    ],
)
def test_repeats_that_are_no_whole_are_named(changes, message):
    with pytest.raises(WeightingError, match=message):
        solved(small_matrix(**changes))


def test_a_repeat_that_collapsed_is_named():
    counts = {"questions": 100, "empty": 90, "distinct": 3, "most_common": 90, "same_truth": 0}
    content = solved(small_matrix(mini=MINI, answers={"mini": {"B": [None, counts]}}))
    assert [text.partition(" gives")[0] for text in content["warnings"]] == ["B: mini#2"]


def test_single_minis_are_repeated_each_on_its_own():
    """Row `single_mini` holds a model per task, so its lists may differ in length; a model's own may not."""
    low = {"A": [0.1, 0.3], "B": 0.4, "C": [0.3, 0.4, 0.5]}
    single = {"A": {"A": 0.6, "B": 0.4, "C": 0.5}, "B": {"A": 0.3, "B": 0.7, "C": 0.6}, "C": dict.fromkeys("ABC", 0.8)}
    matrix = {"tasks": list("ABC"), "base": dict.fromkeys("ABC", 0.1), "single": single, "single_mini": low}
    assert solved(matrix, form="simple")["difficulties"] == pytest.approx({"A": 2 / 3, "B": 3 / 7, "C": 0.5})
    with pytest.raises(WeightingError, match="no figure of single_mini#2 on B"):
        solved(matrix, form="simple", groups={"G": ["A", "B"], "H": ["C"]})


def test_the_bootstrap_asks_all_repeats_the_same_questions():
    """Against the same questions drawn by hand: the mean over repeats of each draw's figures."""
    matrix, samples = paired_samples(50)
    other, figures = paired_samples(50, seed=1)
    for task in "ABC":
        samples[task]["mini#2"] = figures[task]["mini"]
        matrix["mini"][task] = [matrix["mini"][task], other["mini"][task]]
        matrix["stderr"]["mini"][task] = [matrix["stderr"]["mini"][task]] * 2
    problem = build_problem(matrix)
    drawn = draw(problem, samples, 20, seed=5)
    rng = np.random.default_rng(5)
    for column, task in enumerate("ABC"):
        for index in range(20):
            picked = rng.integers(50, size=50)
            by_name = {name: values[0][picked].mean() for name, values in samples[task].items()}
            expected = [(by_name["mini"] + by_name["mini#2"]) / 2, *(by_name[f"plus_mini:{u}"] for u in "ABC")]
            np.testing.assert_allclose(drawn[index, :, column], expected)
        gain = samples[task][f"plus_mini:{task}"][0] - (samples[task]["mini"][0] + samples[task]["mini#2"][0]) / 2
        assert denominator_noise(problem, samples)[column] == pytest.approx(gain.std(ddof=1) / 50**0.5)


def repeated_folder(tmp_path, right, groups=("A", "B")):
    """Score files of models on tasks, with per-sample files beside them."""
    scores = tmp_path / "scores"
    for model, counts in right.items():
        for task, count in zip(groups, counts, strict=True):
            path = answer_file(tmp_path / "answers", task, model, count)
            extra = ["--per_sample", str(scores / f"{path.stem}.samples.json")]
            assert qa.main(["-a", str(path), "--output", str(scores / path.name), *extra]) == 0
    return scores


RIGHT = {"mini": (10, 20), "mini#3": (11, 20), "mini#2": (12, 18), "plus_mini:A": (30, 22), "plus_mini:B": (15, 28)}


def test_score_files_of_repeats_fill_lists_in_their_order(tmp_path):
    matrix, samples = collect(repeated_folder(tmp_path, {**RIGHT, "plus_mini:B#2": (17, 30)}))
    assert matrix["mini"] == {"A": [10 / 40, 12 / 40, 11 / 40], "B": [20 / 40, 18 / 40, 20 / 40]}
    assert matrix["plus_mini"]["A"] == {"A": 30 / 40, "B": 22 / 40}
    assert matrix["plus_mini"]["B"] == {"A": [15 / 40, 17 / 40], "B": [28 / 40, 30 / 40]}
    assert [counts["most_common"] for counts in matrix["answers"]["mini"]["A"]] == [30, 28, 29]
    assert set(samples["A"]) == {"mini", "mini#2", "mini#3", "plus_mini:A", "plus_mini:B", "plus_mini:B#2"}
    build_problem(matrix)


def test_a_repeat_left_out_is_named_not_closed_up(tmp_path):
    scores = repeated_folder(tmp_path, RIGHT)
    for path in scores.glob("B_*mini#2*"):
        path.unlink()
    matrix, _ = collect(scores)
    with pytest.raises(WeightingError, match="no figure of mini#2 on B"):
        solved(matrix)


def test_a_task_named_like_a_repeat_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="'A#2' has a name like that of a repeat"):
        collect(repeated_folder(tmp_path, RIGHT, groups=("A#2", "B")))


def test_the_matrix_goes_where_it_is_told(tmp_path, capsys):
    scores = repeated_folder(tmp_path, RIGHT)
    assert run("--scores", scores, "--matrix", tmp_path / "m.json", "--output", tmp_path / "w.json") == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"m.json", "w.json"}
    assert run("--scores", scores, "--matrix", tmp_path / "only" / "m.json") == 0
    written = json.loads((tmp_path / "m.json").read_text())
    assert json.loads((tmp_path / "only" / "m.json").read_text()) == written == collect(scores)[0]
    with pytest.raises(SystemExit) as stopped:
        run(write(tmp_path / "x.json", small_matrix()), "--matrix", tmp_path / "y.json")
    assert stopped.value.code == 2
    assert "without --scores there is none" in capsys.readouterr().err
