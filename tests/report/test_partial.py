"""Work folders that lack something, wait for something, or hold something broken."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.report.academic import TASKS, begun
from tests.report.document import Document, embedded
from visatb.report import build
from visatb.report.load import Cell, ReportError, load
from visatb.report.outcome import losses
from visatb.report.view import notes
from weighting_visatb import build_problem, visatb_weights, weigh


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.usefixtures("no_figures")
def test_only_an_experiment_file(tmp_path: Path) -> None:
    begun(tmp_path)
    text = build(tmp_path).read_text(encoding="utf-8")
    document = Document(text)
    assert "No answer yet" in text
    assert "Waits for the task weights" in text
    assert [values["id"] for tag, values in document.elements if tag == "section" and "id" in values] == ["settings"]
    assert "not done" in (tmp_path / "report" / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_weights_without_results(bare: Path) -> None:
    (bare / "results.json").unlink()
    text = build(bare).read_text(encoding="utf-8")
    assert "Waits for the final runs" in text
    assert "0.8585" in text
    assert 'id="results"' not in text


@pytest.mark.usefixtures("no_figures")
def test_waits_for_a_score_from_outside(bare: Path) -> None:
    results = json.loads((bare / "results.json").read_text())
    for method in results["methods"]:
        results["methods"][method]["VQAv2"] = None
    results["methods"]["TLA"]["GQA"] = None
    results |= {"waiting": {"VQAv2": "/from/the/server.json"}, "delta_tasks": [], "delta_i": {}, "delta_e": {}}
    (bare / "results.json").write_text(json.dumps(results))
    document = Document(build(bare).read_text(encoding="utf-8"))
    words = "".join(document.words)
    everyone = ", ".join(results["methods"])
    assert f"Waits for a test score of VQAv2 ({everyone}), which comes from outside, in /from/the/server.json." in words
    assert "Waits for a test score of GQA (TLA)." in words
    assert "No answer yet" in words
    assert document.row("VisATB")[3] == "waits"


@pytest.mark.usefixtures("no_figures")
def test_compares_what_is_complete(academic: Path, bare: Path) -> None:
    shutil.copytree(academic / "scores", bare / "scores")
    results = json.loads((bare / "results.json").read_text())
    for method in results["methods"]:
        results["methods"][method]["VQAv2"] = None
    results |= {"waiting": {"VQAv2": "x.json"}, "delta_tasks": [task for task in TASKS if task != "VQAv2"]}
    (bare / "results.json").write_text(json.dumps(results))
    words = "".join(Document(build(bare).read_text(encoding="utf-8")).words)
    assert "One run of each method, so no verdict" in words
    assert "Over the 6 of 7 tasks that have all their test scores." in words


def test_single_runs_that_serve_as_stl(academic: Path) -> None:
    run = load(academic)
    assert run.results
    reused = replace(
        run,
        results=replace(run.results, stl_runs={"GQA": ["single:GQA"]}),
        scores={("test", "GQA", "single:GQA"): run.test_cells("GQA", "STL")},
        histories={"single:GQA": run.histories["STL:GQA"], "EW": run.histories["EW"]},
    )
    assert reused.test_cells("GQA", "STL") == run.test_cells("GQA", "STL") != []
    assert losses(reused)["GQA"]["STL"] == losses(run)["GQA"]["STL"]


@pytest.mark.usefixtures("no_figures")
def test_without_single_task_runs(bare: Path) -> None:
    results = json.loads((bare / "results.json").read_text())
    del results["methods"]["STL"]
    deltas = {"delta_i": {"EW": 0.0, "VisATB": 2.0}, "delta_e": {"EW": 0.0, "VisATB": 0.2}}
    change(bare / "results.json", methods=results["methods"], baseline="EW", **deltas)
    words = "".join(Document(build(bare).read_text(encoding="utf-8")).words)
    assert "No single-task runs (STL): ΔI and ΔE are relative to EW." in words
    assert re.search(
        r"One run of each method, so no verdict: here ΔI of VisATB less that of EW is \+\d\.\d\d points", words
    )
    assert "; behind on VQAv2, GQA, OCRVQA." in words  # by Table 3
    assert "no interval: standard errors are missing" in words


@pytest.mark.usefixtures("no_figures")
def test_groups(bare: Path) -> None:
    groups = {"text": ["ShareGPT4V", "Ref-caption"], "look": ["VQAv2", "GQA", "ChartQA", "OCRVQA", "Ref-bbox"]}
    matrix = json.loads((bare / "matrix.json").read_text())
    rows = matrix["plus_mini"]
    matrix["plus_mini"] = {"text": rows["Ref-caption"] | {"ShareGPT4V": rows["ShareGPT4V"]["ShareGPT4V"]}}
    matrix["plus_mini"]["look"] = {t: rows[t][t] if t in groups["look"] else rows["GQA"][t] for t in TASKS}
    matrix["stderr"] = {}
    weights = weigh(build_problem(matrix, groups=groups, fixed={"ShareGPT": 1.0}), bootstrap=0)
    (bare / "weights.json").write_text(json.dumps(weights))
    (bare / "matrix.json").write_text(json.dumps(matrix))
    text = build(bare).read_text(encoding="utf-8")
    document = Document(text)
    row = next(row for row in document.rows if row[0] == "text" + "ShareGPT4V, Ref-caption")
    assert row[-1] == f"{weights['weights']['ShareGPT4V']:.4f}"
    assert embedded(text, "whatif-data")["groups"] == groups
    assert "The weights have no intervals" in text


def test_advice(bare: Path) -> None:
    weights = json.loads((bare / "weights.json").read_text())
    weights["weights"]["Ref-bbox"] = 2.31
    del weights["warnings"]  # as older files are
    (bare / "weights.json").write_text(json.dumps(weights))
    change(bare / "cost.json", mini={"samples": 512, "steps": 32})
    found = " ".join(notes(load(bare)))
    assert "The weight of Ref-bbox, 2.310, is outside 0.5 to 2.0" in found
    assert "fewer than 100 optimizer steps, which the paper advises against: mini (32)." in found


@pytest.mark.usefixtures("no_figures")
def test_doubts_about_the_weights_are_shown(bare: Path) -> None:
    """What the weights file says against itself stands in the page, beside the intervals, and in the model card."""
    doubts = ["A: mini gives one answer, 'a', to 300 of 300 questions", "28.4% of the bootstrap draws are left out"]
    change(bare / "weights.json", warnings=doubts, draws={"made": 1000, "kept": 716})
    path = build(bare)
    words = " ".join("".join(Document(path.read_text(encoding="utf-8")).words).split())
    card = (path.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    for doubt in doubts:
        assert f"λ: {doubt}." in words
        assert f"- {doubt}\n" in card
    condition = "conditional on the 71.6% of the draws that are not degenerate"
    assert f"(questions only: each proxy was trained once; {condition})" in words
    assert condition in card
    change(bare / "weights.json", draws={"made": 1000, "kept": 1000})
    assert condition not in build(bare).read_text(encoding="utf-8")


def test_final_models_that_collapsed_are_named(academic: Path) -> None:
    run = load(academic)
    counts = {"questions": 50, "empty": 0, "distinct": 1, "most_common": 50, "same_truth": 3, "text": "2"}
    said = "GQA: EW gives one answer, '2', to 50 of 50 questions of the test set."
    assert said in notes(replace(run, answers={("test", "GQA", "EW"): counts}))
    assert said not in notes(replace(run, answers={("val", "GQA", "EW"): counts}))  # that is for the weights to say


def test_built_again_it_is_the_same(bare: Path) -> None:
    (bare / "results.json").unlink()
    first = build(bare)
    before = {path.name: path.read_bytes() for path in first.parent.rglob("*") if path.is_file()}
    build(bare)
    assert {path.name: path.read_bytes() for path in first.parent.rglob("*") if path.is_file()} == before
    assert not any(name.startswith(".") for name in before)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("name", ["weights.json", "results.json", "cost.json", "matrix.json"])
def test_a_broken_file_is_named(bare: Path, name: str) -> None:
    (bare / name).write_text("{")
    with pytest.raises(ReportError, match=name):
        build(bare)
    assert not (bare / "report" / "index.html").exists()


def test_weights_that_do_not_fit_are_refused(bare: Path) -> None:
    change(bare / "weights.json", contributions=[[1.0]])
    with pytest.raises(ReportError, match=r"weights\.json: its parts"):
        load(bare)


@pytest.mark.usefixtures("no_figures")
def test_the_panel_starts_from_shrunken_scores_where_the_weights_do(bare: Path) -> None:
    """What the panel computes first is λ of the run, whichever scores it came from."""
    matrix = json.loads((bare / "matrix.json").read_text())
    for mode in ("none", "auto"):
        weights = weigh(build_problem(matrix, fixed={"ShareGPT": 1.0}), bootstrap=200, shrinkage=mode)
        (bare / "weights.json").write_text(json.dumps(weights))
        given = embedded(build(bare).read_text(encoding="utf-8"), "whatif-data")
        vectors = (np.array(given[part], dtype=float) for part in ("out", "in", "difficulty"))
        first = visatb_weights(*vectors, given["temperature"], given["alpha"])
        assert first == pytest.approx([weights["weights"][task] for task in TASKS]), mode


def test_a_mean_over_repeats_has_the_standard_error_of_its_questions(bare: Path) -> None:
    """Of two runs on the same questions: that of the questions' mean values, by hand."""
    run = load(bare)
    assert run.results
    values = {"EW": [1.0, 0.0, 1.0, 0.0], "EW#2": [1.0, 1.0, 1.0, 0.0]}
    ids, ones = list("abcd"), [1.0] * 4
    scores = {("test", "GQA", m): [Cell("em", sum(v) / 4, 0.3, True, ids, v, ones)] for m, v in values.items()}
    twice = replace(run, results=replace(run.results, repeats={"EW": 2}), scores=scores)
    [cell] = twice.test_cells("GQA", "EW")
    assert cell.value == pytest.approx(0.625)
    assert cell.stderr == pytest.approx(np.std([1, 0.5, 1, 0], ddof=1) / 2)
    scores["test", "GQA", "EW#2"][0] = replace(scores["test", "GQA", "EW#2"][0], ids=list("abce"))
    assert twice.test_cells("GQA", "EW")[0].stderr is None  # other questions: what they share is not known


@pytest.mark.usefixtures("no_figures")
def test_weights_that_are_sampling_ratios_are_handed_on_as_such(bare: Path) -> None:
    path = bare / "experiment.yaml"
    for apply, more in (("loss", ""), ("sampling", " --apply_weights sampling")):
        content = yaml.safe_load(path.read_text())
        content["weighting"] = {**content.get("weighting", {}), "apply": apply}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        page = build(bare).read_text(encoding="utf-8")
        assert embedded(page, "whatif-data")["applied"] == more
        assert re.search(rf"--visatb_weights [\d. ]*\d{more}</code>", page)


@pytest.mark.usefixtures("no_figures")
def test_losses_and_lower_figures_are_told_from_scores(bare: Path) -> None:
    assert "Lower is better" not in build(bare).read_text(encoding="utf-8")
    change(bare / "matrix.json", higher_is_better=dict.fromkeys(TASKS, True) | {"GQA": False})
    assert "Lower is better for GQA." in build(bare).read_text(encoding="utf-8")
    path = bare / "experiment.yaml"
    content = yaml.safe_load(path.read_text())
    content["weighting"] = {**content.get("weighting", {}), "validation": "loss"}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    assert "Mean loss of the true answers&#39; tokens" in build(bare).read_text(encoding="utf-8")
