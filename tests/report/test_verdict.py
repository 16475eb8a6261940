"""ΔI and ΔE of two methods with what chance does to them, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.overall import Table, overall
from tests.report.academic import TASKS, table_three
from visatb.report.load import Cell, Run, load
from visatb.workdir.results_file import Results
from visatb.workdir.verdict import BOTH, QUESTIONS, TRAINING, Change, Comparison, holm, noise_of_proxies
from visatb.workdir.words import in_words

BASE = Comparison(
    method="VisATB",
    other="EW",
    baseline="STL",
    delta_i=(11.29, 8.75),
    delta_e=(0.15, 0.10),
    gain=Change(2.54, (1.0, 4.0)),
    error=Change(0.05, (-0.3, 0.4)),
    by_task={"VQAv2": Change(-0.4, (-1, 0.2)), "Ref-bbox": Change(11, (8, 14)), "OCRVQA": Change(-1, (-2, -0.1))},
    own={},
    exact=[],
    tasks=(3, 3),
)
THREE = replace(BASE, runs=3, kind=BOTH)


def small_run(cells: dict[str, list[Cell]], baseline: str = "EW") -> Run:
    """One task `t` with the test cells of each method."""
    points = {method: {"t": [cell.value for cell in row]} for method, row in cells.items()}
    first = next(iter(cells.values()))
    metrics = [{"metric": cell.metric, "higher_is_better": cell.higher_is_better} for cell in first]
    table = Table(
        {m: {("t", cell.metric): cell.value for cell in row} for m, row in cells.items()},
        {("t", cell.metric): cell.higher_is_better for cell in first},
    )
    figures = overall(table, baseline)
    results = {
        "baseline": baseline,
        "tasks": ["t"],
        "metrics": {"t": metrics},
        "methods": points,
        "delta_i": {m: o.improvement for m, o in figures.items()},
        "delta_e": {m: o.error for m, o in figures.items()},
    }
    scores = {("test", "t", method): row for method, row in cells.items()}
    return in_memory(results, scores)


def in_memory(results: Mapping[str, Any] | None, scores: dict[Any, list[Cell]]) -> Run:
    """A work folder of which only results and scores are known."""
    nothing: Any = None  # the experiment, which no comparison asks
    found = Results.from_json(results) if results else None
    return Run(Path(), nothing, "", None, None, found, {}, None, scores, {}, {}, {})


def first(run: Run) -> Any:
    """The comparison that the headline is about."""
    return next(iter(run.comparisons()), None)


def test_changes_are_those_of_equation_nine(academic: Path) -> None:
    run = load(academic)
    assert run.results
    methods = {m: {(t, ""): v for t, v in table_three(m).items()} for m in run.results.methods}
    expected = overall(Table(methods, {(t, ""): True for t in TASKS}), "STL")
    for method, outcome in expected.items():
        assert run.results.changes(method) == pytest.approx(outcome.tasks)


def test_interval_of_standard_errors() -> None:
    # ΔI of A against B = 100·(a − b)/b; with b nearly exact its error is 100·se/b.
    run = small_run({"VisATB": [Cell("em", 0.66, 0.02, True)], "EW": [Cell("em", 0.60, 1e-9, True)]})
    found = first(run)
    assert found
    assert found.gain.value == pytest.approx(10)
    assert found.gain.interval == pytest.approx((10 - 1.96 * 100 * 0.02 / 0.6, 10 + 1.96 * 100 * 0.02 / 0.6), abs=0.4)


def test_interval_of_paired_samples() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 1, 500)
    ids = [str(k) for k in range(500)]
    gain = rng.normal(0.01, 0.02, 500)
    cells = {
        "EW": [Cell("em", base.mean(), base.std() / 500**0.5, True, ids, base.tolist(), [1.0] * 500)],
        "VisATB": [Cell("em", (base + gain).mean(), 0.01, True, ids, (base + gain).tolist(), [1.0] * 500)],
    }
    paired = first(small_run(cells))
    assert paired
    assert paired.gain.interval
    width = paired.gain.interval[1] - paired.gain.interval[0]
    assert width == pytest.approx(2 * 1.96 * 100 * gain.std() / 500**0.5 / base.mean(), rel=0.12)
    cells["VisATB"][0] = replace(cells["VisATB"][0], ids=ids[::-1])  # other questions: no pairs, much less sure
    unpaired = first(small_run(cells))
    assert unpaired
    assert unpaired.gain.interval
    assert unpaired.gain.interval[1] - unpaired.gain.interval[0] > 5 * width


def test_weighted_samples_keep_their_mean() -> None:
    ids = ["a", "b", "c", "d"]
    weights, values = [1.0, 2.0, 3.0, 4.0], [0.5, 0.5, 0.5, 0.5]
    cell = Cell("gleu", 0.5, 0.0, True, ids, values, weights)
    found = first(small_run({"VisATB": [replace(cell, values=[0.6] * 4, value=0.6)], "EW": [cell]}))
    assert found
    assert found.gain.interval == pytest.approx((20, 20))


def test_lower_is_better() -> None:
    run = small_run({"VisATB": [Cell("err", 0.45, 1e-6, False)], "EW": [Cell("err", 0.50, 1e-6, False)]})
    found = first(run)
    assert found
    assert found.gain.interval == pytest.approx((10, 10), abs=0.01)
    assert found.on_side(1) == ["t"]
    assert found.own["t"].interval == pytest.approx((10, 10), abs=0.01)


def test_nothing_known_of_errors() -> None:
    run = small_run({"VisATB": [Cell("em", 0.7, None, True)], "EW": [Cell("em", 0.6, None, True)]})
    found = first(run)
    assert found
    assert found.gain.interval is None
    words = in_words(found, "")
    assert "no interval" in words.sentence
    assert "Task by task against EW: ahead on t." in words.sentence
    assert words.headline == "One run of each method, so no verdict: here ΔI of VisATB less that of EW is +16.67 points"


@pytest.mark.parametrize(
    ("gain", "gain_interval", "error", "error_interval", "tone", "headline"),
    [
        (2.5, (1, 4), 0.05, (-0.3, 0.4), "good", "better on average, and no clear difference in evenness"),
        (2.5, (1, 4), -0.5, (-0.8, -0.1), "good", "better on average, and more even"),
        (2.5, (1, 4), 0.5, (0.1, 0.9), "mixed", "better on average, but less even"),
        (-2.5, (-4, -1), 0.5, (0.1, 0.9), "bad", "worse on average, and less even"),
        (0.5, (-1, 2), 0.5, (0.1, 0.9), "bad", "no clear difference on average, and less even"),
    ],
)
def test_words_of_a_verdict(gain, gain_interval, error, error_interval, tone, headline) -> None:  # type: ignore[no-untyped-def]
    changes = {"gain": Change(gain, gain_interval), "error": Change(error, error_interval)}
    comparison = replace(THREE, delta_i=(5 + gain, 5), delta_e=(1 + error, 1), **changes)
    words = in_words(comparison, "")
    assert (words.tone, words.headline) == (tone, f"VisATB against EW: {headline} (3 runs of each method)")
    assert "questions and training" in words.sentence
    assert "seed by seed" in words.caution
    once = in_words(replace(comparison, runs=1, kind=QUESTIONS), "")
    assert once.tone == "open"
    assert "better" not in once.headline
    assert "worse" not in once.headline
    assert once.headline.startswith("One run of each method, so no verdict: here ΔI of VisATB less that of EW is ")


def test_words_when_all_is_chance() -> None:
    words = in_words(replace(THREE, gain=Change(2.54, (-1, 6))), "")
    assert words.tone == "open"
    expected = "VisATB and EW: no clear difference, neither on average nor in evenness (3 runs of each method)"
    assert words.headline == expected
    inside = "(95% interval, questions and training: −1.00 to +6.00, within what chance alone can do)"
    assert inside in words.sentence


def test_words_of_one_and_of_two_runs() -> None:
    words = in_words(BASE, "")
    assert words.headline.endswith("no verdict: here ΔI of VisATB less that of EW is +2.54 points")
    assert "(95% interval, questions only: +1.00 to +4.00)" in words.sentence
    assert "`repeats: {finals: 3}`" in words.caution
    assert "know nothing of training" in words.caution
    two = replace(BASE, runs=2, gain=Change(1.2, (0.2, 2.2), (3.1, -0.7)), spread=2.7, source="runs")
    said = in_words(two, "").headline
    assert said == (
        "Two runs of each method, so no verdict: here ΔI of VisATB less that of EW is +3.10 and −0.70 points"
    )


def test_words_on_how_many_runs_it_takes() -> None:
    assert "is not known: nothing was trained twice" in in_words(BASE, "").sentence
    known = replace(BASE, spread=1.0, source="proxies", questions=0.2)
    # By hand: z = 1.96 + 0.84 = 2.8016; z² · 1 = 7.849, + 1.92 → 10; with the questions z²/(1 − z²·0.04) = 11.44 → 14.
    said = in_words(known, "").sentence
    assert "vary by ±1.00 points (standard deviation as the proxies' repeats show it)" in said
    assert "on these very questions would show in about 10 runs of each method" in said
    assert "too, in about 14" in said
    blind = in_words(replace(known, questions=1.5), "").sentence  # z · 1.5 = 4.2 points
    assert "in no number of them, since the questions alone hide up to 4.2 points" in blind
    assert known.runs_needed(100.0, 0.0) == 3


def test_words_task_by_task() -> None:
    said = "ahead on Ref-bbox; behind on OCRVQA; no clear difference on VQAv2."
    assert f"Task by task against EW, each by its own interval (questions only): {said}" in in_words(BASE, "").sentence
    one = replace(BASE, by_task=BASE.by_task | {"OCRVQA": Change(-1, None)})
    assert "no standard errors, so not known on OCRVQA." in in_words(one, "").sentence
    assert one.on_side(-1) == []


def test_words_of_many_tasks_name_some() -> None:
    many = {f"t{k}": Change(1, (0.5, 2)) for k in range(30)}
    assert "ahead on t0, t1, t2 and 27 more." in in_words(replace(BASE, by_task=many), "").sentence


def test_words_against_the_baseline_itself() -> None:
    comparison = replace(THREE, baseline="EW", delta_i=(2.54, 0.0), delta_e=(0.2, 0.0))
    words = in_words(comparison, "")
    assert words.headline == "VisATB against EW: better on average, but 1 task behind (3 runs of each method)"
    assert words.tone == "mixed"
    assert words.sentence.startswith(
        "Average change per task against EW (ΔI): +2.54% (95% interval, questions and training: +1.00 to +4.00)."
    )
    clean = in_words(replace(comparison, by_task={"VQAv2": Change(-0.4, (-1, 0.2))}), "")
    assert clean.headline == "VisATB against EW: better on average, and no task behind (3 runs of each method)"
    assert clean.tone == "good"


def test_the_second_method_as_baseline_has_no_error_of_its_own_beside_it() -> None:
    # ΔI against EW with errors on both sides: (a − b)/b, where b's error enters once, not twice.
    run = small_run({"VisATB": [Cell("em", 0.66, 0.01, True)], "EW": [Cell("em", 0.60, 0.01, True)]})
    found = first(run)
    assert found
    assert found.gain.interval
    half = (found.gain.interval[1] - found.gain.interval[0]) / 2
    assert half == pytest.approx(1.96 * 100 * ((0.01 / 0.6) ** 2 + (0.66 * 0.01 / 0.36) ** 2) ** 0.5, rel=0.08)


def test_without_results() -> None:
    assert in_memory(None, {}).comparisons() == []
    assert in_words(None, "still to come").sentence == "still to come"


# ---------------------------------------------------------------------------------------------- several runs of each


def several(figures: dict[str, np.ndarray], tasks: int = 1, baseline: str = "EW") -> Run:
    """Methods with per-sample values float64[runs, tasks, n] each, every run of a model's own name."""
    names = [f"t{k}" for k in range(tasks)]
    runs = {
        method: {task: [[float(run[k].mean())] for run in values] for k, task in enumerate(names)}
        for method, values in figures.items()
    }
    methods = {m: {t: [float(np.mean(of_task))] for t, of_task in row.items()} for m, row in runs.items()}
    scores = {}
    for method, values in figures.items():
        for r, run in enumerate(values):
            for k, task in enumerate(names):
                ids, weights = [str(i) for i in range(len(run[k]))], [1.0] * len(run[k])
                cell = Cell("em", float(run[k].mean()), 0.1, True, ids, run[k].tolist(), weights)
                scores["test", task, method if r == 0 else f"{method}#{r + 1}"] = [cell]
    count = len(next(iter(figures.values())))
    results = {
        "baseline": baseline,
        "tasks": names,
        "metrics": {task: [{"metric": "em", "higher_is_better": True}] for task in names},
        "methods": methods,
        "runs": runs,
        "repeats": dict.fromkeys(figures, count),
        "delta_i": dict.fromkeys(figures, 0.0),
        "delta_e": dict.fromkeys(figures, 0.0),
    }
    return in_memory(results, scores)


def simulated(rng: np.random.Generator, runs: int, training: float, n: int = 40) -> dict[str, np.ndarray]:
    """Two methods of the same truth: shared questions, a noise of training of each run, noise of each answer."""
    questions = rng.normal(0, 0.3, n)
    seeds = {name: rng.normal(0, training, (runs, 1, 1)) for name in ("EW", "VisATB")}
    return {name: 2 + questions + seed + rng.normal(0, 0.2, (runs, 1, n)) for name, seed in seeds.items()}


@pytest.mark.parametrize("runs", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_intervals_hold_the_truth_as_often_as_they_say(runs: int) -> None:
    """Against data of known truth, a difference of 0; 150 experiments."""
    rng = np.random.default_rng(runs)
    held = questions = 0
    for place in range(150):
        data = simulated(rng, runs, 0.06)
        low, high = first(several(data)).gain.interval
        held += low <= 0 <= high
        if place < 50:
            low, high = first(several({name: values[:1] for name, values in data.items()})).gain.interval
            questions += low <= 0 <= high
    assert 0.91 <= held / 150 <= 0.99
    assert questions / 50 < 0.75, "one run's interval over the questions alone is much too narrow"


def test_runs_are_compared_seed_by_seed() -> None:
    """What a seed does to both methods alike is not in the difference."""
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.2, (4, 1, 1))
    base = 2 + rng.normal(0, 0.3, (1, 1, 200)) + rng.normal(0, 0.001, (4, 1, 200))
    found = first(several({"EW": base + seeds, "VisATB": (base + seeds) * 1.01}))
    assert found.gain.value == pytest.approx(1.0)
    assert found.gain.runs == pytest.approx([1.0] * 4)
    assert found.gain.interval == pytest.approx((1.0, 1.0), abs=0.05)
    assert (found.verdict, found.kind, found.runs) == ("ahead", BOTH, 4)
    shuffled = first(several({"EW": base + seeds, "VisATB": (base + seeds[::-1]) * 1.01}))
    assert shuffled.verdict == "not told apart"


def test_one_far_run_of_three_makes_no_verdict() -> None:
    rng = np.random.default_rng(1)
    base = 2 + rng.normal(0, 0.1, (1, 1, 400)) + rng.normal(0, 0.01, (3, 1, 400))
    gain = np.array([0.02, 0.03, 0.30])[:, None, None]
    found = first(several({"EW": base, "VisATB": base + gain}))
    assert min(found.gain.runs) > 0
    low, high = found.gain.interval
    assert low < 0 < found.gain.value < high
    # Student's t with 2 degrees of freedom: 4.30 standard errors to either side.
    half = 4.30 * np.std(found.gain.runs, ddof=1) / 3**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)
    assert len(found.gain.runs) == 3


def test_two_runs_have_no_interval_with_training() -> None:
    rng = np.random.default_rng(2)
    found = first(several(simulated(rng, 2, 0.5)))
    assert (found.runs, found.kind, found.verdict) == (2, QUESTIONS, "")
    assert found.spread == pytest.approx(np.std(found.gain.runs, ddof=1))
    assert found.source == "runs"


def test_seeds_alone_where_there_are_no_standard_errors() -> None:
    run = several(simulated(np.random.default_rng(3), 3, 0.1))
    assert run.results
    for cells in run.scores.values():
        cells[0] = replace(cells[0], stderr=None, ids=[], values=[], weights=[])
    found = first(run)
    assert found.kind == TRAINING
    assert found.gain.interval


def test_all_methods_against_both_and_the_number_accounted_for() -> None:
    rng = np.random.default_rng(4)
    base = 2 + rng.normal(0, 0.1, (1, 2, 300)) + rng.normal(0, 0.01, (3, 2, 300))
    methods = {"STL": base, "EW": base + 0.1, "TLA": base + 0.1, "VisATB": base + 0.3}
    found = several(methods, tasks=2, baseline="STL").comparisons()
    pairs = [(one.method, one.other) for one in found]
    assert pairs == [("VisATB", "EW"), ("TLA", "EW"), ("EW", "STL"), ("TLA", "STL"), ("VisATB", "STL")]
    assert found[0].adjusted is None
    assert {one.family for one in found} == {4}
    assert [one.adjusted for one in found[1:]] == holm([one.gain.p for one in found[1:]])
    assert found[1].verdict == "not told apart"
    assert found[0].verdict == found[4].verdict == "ahead"


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_noise_of_proxies_by_hand() -> None:
    noise = {
        "a": {"standard_deviation": {"plus_mini:a": 0.03, "mini": 9.0}},
        "b": {"standard_deviation": {"plus_mini:b": 0.08, "mini": 9.0}},
    }
    matrix = {"plus_mini": {"a": {"a": [0.5, 0.7], "b": 1}, "b": {"a": 1, "b": 2.0}}}
    # 5% and 4% of the figures: √(2 · (25 + 16)) ÷ 2 points.
    assert noise_of_proxies({"training_noise": noise}, matrix) == pytest.approx((2 * 41) ** 0.5 / 2)
    assert noise_of_proxies({}, matrix) is None


def test_deltas_of_each_run_are_those_of_equation_nine() -> None:
    rng = np.random.default_rng(5)
    run = several({name: rng.uniform(0.3, 0.9, (3, 4, 20)) for name in ("STL", "EW")}, tasks=4, baseline="STL")
    assert run.results
    gains, errors = run.results.deltas_by_run("EW")
    for place in range(3):
        table = {
            method: {(task, ""): figures[place][0] for task, figures in row.items()}
            for method, row in run.results.runs.items()
        }
        expected = overall(Table(table, dict.fromkeys(table["EW"], True)), "STL")["EW"]
        assert (gains[place], errors[place]) == pytest.approx((expected.improvement, expected.error))
