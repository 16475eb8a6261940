"""ΔI and ΔE of two methods with what chance does to them, and the words for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.overall import Table, overall
from tests.report.academic import TASKS, table_three
from visatb.report.load import Cell, Run, load
from visatb.report.verdict import Change, Comparison, compare, task_changes
from visatb.report.words import in_words

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
DOUBT = " (one training run; intervals over test questions only)"


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
    return Run(Path(), {}, "", None, None, results, {}, None, scores, {}, {}, {})


def test_changes_are_those_of_equation_nine(academic: Path) -> None:
    run = load(academic)
    assert run.results
    methods = {m: {(t, ""): v for t, v in table_three(m).items()} for m in run.results["methods"]}
    expected = overall(Table(methods, {(t, ""): True for t in TASKS}), "STL")
    for method, outcome in expected.items():
        assert task_changes(run.results, method) == pytest.approx(outcome.tasks)


def test_interval_of_standard_errors() -> None:
    # ΔI of A against B = 100·(a − b)/b; with b nearly exact its error is 100·se/b.
    run = small_run({"VisATB": [Cell("em", 0.66, 0.02, True)], "EW": [Cell("em", 0.60, 1e-9, True)]})
    found = compare(run)
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
    paired = compare(small_run(cells))
    assert paired
    assert paired.gain.interval
    width = paired.gain.interval[1] - paired.gain.interval[0]
    assert width == pytest.approx(2 * 1.96 * 100 * gain.std() / 500**0.5 / base.mean(), rel=0.12)
    cells["VisATB"][0] = replace(cells["VisATB"][0], ids=ids[::-1])  # other questions: no pairs, much less sure
    unpaired = compare(small_run(cells))
    assert unpaired
    assert unpaired.gain.interval
    assert unpaired.gain.interval[1] - unpaired.gain.interval[0] > 5 * width


def test_weighted_samples_keep_their_mean() -> None:
    ids = ["a", "b", "c", "d"]
    weights, values = [1.0, 2.0, 3.0, 4.0], [0.5, 0.5, 0.5, 0.5]
    cell = Cell("gleu", 0.5, 0.0, True, ids, values, weights)
    found = compare(small_run({"VisATB": [replace(cell, values=[0.6] * 4, value=0.6)], "EW": [cell]}))
    assert found
    assert found.gain.interval == pytest.approx((20, 20))


def test_lower_is_better() -> None:
    run = small_run({"VisATB": [Cell("err", 0.45, 1e-6, False)], "EW": [Cell("err", 0.50, 1e-6, False)]})
    found = compare(run)
    assert found
    assert found.gain.interval == pytest.approx((10, 10), abs=0.01)
    assert found.on_side(1) == ["t"]
    assert found.own["t"].interval == pytest.approx((10, 10), abs=0.01)


def test_nothing_known_of_errors() -> None:
    run = small_run({"VisATB": [Cell("em", 0.7, None, True)], "EW": [Cell("em", 0.6, None, True)]})
    found = compare(run)
    assert found
    assert found.gain.interval is None
    words = in_words(found, "")
    assert "no interval" in words.sentence
    assert "Task by task against EW: ahead on t." in words.sentence
    assert words.headline.endswith("no task behind (one training run; how sure that is, is not known)")


@pytest.mark.parametrize(
    ("gain", "gain_interval", "error", "error_interval", "tone", "headline"),
    [
        (2.5, (1, 4), 0.05, (-0.3, 0.4), "good", "better on average, and no clear difference in evenness"),
        (2.5, (1, 4), -0.5, (-0.8, -0.1), "good", "better on average, and more even"),
        (2.5, (1, 4), 0.5, (0.1, 0.9), "mixed", "better on average, but less even"),
        (-2.5, (-4, -1), 0.5, (0.1, 0.9), "bad", "worse on average, and less even"),
        (0.5, (-1, 2), 0.5, (0.1, 0.9), "bad", "no clear difference on average, and less even"),
        (2.5, None, -0.5, None, "open", "better on average, and more even"),
    ],
)
def test_words(gain, gain_interval, error, error_interval, tone, headline) -> None:  # type: ignore[no-untyped-def]
    comparison = replace(
        BASE,
        delta_i=(5 + gain, 5),
        delta_e=(1 + error, 1),
        gain=Change(gain, gain_interval),
        error=Change(error, error_interval),
    )
    words = in_words(comparison, "")
    said = "intervals over test questions only" if gain_interval else "how sure that is, is not known"
    assert (words.tone, words.headline) == (tone, f"VisATB against EW: {headline} (one training run; {said})")
    assert "clearly" not in words.headline + words.sentence


def test_words_when_all_is_chance() -> None:
    words = in_words(replace(BASE, gain=Change(2.54, (-1, 6))), "")
    assert words.tone == "open"
    assert words.headline == f"VisATB and EW: no clear difference, neither on average nor in evenness{DOUBT}"
    assert "(95% interval −1.00 to +6.00, within what chance alone can do)" in words.sentence
    assert "other seeds" in words.caution


def test_words_task_by_task() -> None:
    assert in_words(BASE, "").sentence.endswith(
        "Task by task against EW, by the questions' intervals: ahead on Ref-bbox; behind on OCRVQA; no clear "
        "difference on VQAv2."
    )
    one = replace(BASE, by_task=BASE.by_task | {"OCRVQA": Change(-1, None)})
    assert in_words(one, "").sentence.endswith("no standard errors, so not known on OCRVQA.")
    assert one.on_side(-1) == []


def test_words_of_many_tasks_name_some() -> None:
    many = {f"t{k}": Change(1, (0.5, 2)) for k in range(30)}
    assert in_words(replace(BASE, by_task=many), "").sentence.endswith("ahead on t0, t1, t2 and 27 more.")


def test_words_against_the_baseline_itself() -> None:
    comparison = replace(BASE, baseline="EW", delta_i=(2.54, 0.0), delta_e=(0.2, 0.0))
    words = in_words(comparison, "")
    assert words.headline == f"VisATB against EW: better on average, but 1 task behind{DOUBT}"
    assert words.tone == "mixed"
    assert words.sentence.startswith("Average change per task against EW (ΔI): +2.54% (95% interval +1.00 to +4.00).")
    clean = in_words(replace(comparison, by_task={"VQAv2": Change(-0.4, (-1, 0.2))}), "")
    assert clean.headline == f"VisATB against EW: better on average, and no task behind{DOUBT}"
    assert clean.tone == "good"


def test_the_second_method_as_baseline_has_no_error_of_its_own_beside_it() -> None:
    # ΔI against EW with errors on both sides: (a − b)/b, where b's error enters once, not twice.
    run = small_run({"VisATB": [Cell("em", 0.66, 0.01, True)], "EW": [Cell("em", 0.60, 0.01, True)]})
    found = compare(run)
    assert found
    assert found.gain.interval
    half = (found.gain.interval[1] - found.gain.interval[0]) / 2
    assert half == pytest.approx(1.96 * 100 * ((0.01 / 0.6) ** 2 + (0.66 * 0.01 / 0.36) ** 2) ** 0.5, rel=0.08)


def test_without_results() -> None:
    assert compare(Run(Path(), {}, "", None, None, None, {}, None, {}, {}, {}, {})) is None
    assert in_words(None, "still to come").sentence == "still to come"
