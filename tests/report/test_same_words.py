"""The page, the model card, results.json and the terminal say the same of one, two and three runs of each method."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.report.academic import begun
from tests.report.document import Document
from visatb.commands.run import say_words
from visatb.report import build
from visatb.workdir.conclusions import conclusions
from visatb.workdir.layout import Layout
from visatb.workdir.results_file import Results

METHODS = ("STL", "EW", "TLA", "VisATB")
TASKS = ("colour", "shape")


def work_folder(folder: Path, runs: int, gain: float = 0.03) -> Layout:
    """A work folder whose test scores are there: `runs` of each method, VisATB ahead of the others by `gain`."""
    folder.mkdir(parents=True)
    layout = Layout(folder)
    begun(folder, "three", methods=list(METHODS), repeats={"finals": runs})
    rng = np.random.default_rng(0)
    figures: dict[str, dict[str, list[list[float]]]] = {method: {} for method in METHODS}
    for task in TASKS:
        questions = rng.uniform(0.3, 0.7, 300)
        for method in METHODS:
            for run in range(runs):
                name = f"{method}:{task}" if method == "STL" else method
                values = questions + gain * (method == "VisATB") + rng.normal(0, 0.002) + rng.normal(0, 0.05, 300)
                figures[method].setdefault(task, []).append([float(values.mean())])
                _score(layout, task, name + (f"#{run + 1}" if run else ""), values)
    content: dict[str, Any] = {
        "baseline": "STL",
        "tasks": list(TASKS),
        "metrics": {task: [{"metric": "em", "higher_is_better": True}] for task in TASKS},
        "methods": {m: {t: np.mean(of, axis=0).tolist() for t, of in row.items()} for m, row in figures.items()},
        "runs": figures,
        "repeats": dict.fromkeys(METHODS, runs),
        "stl_runs": {t: [f"STL:{t}" + (f"#{run + 1}" if run else "") for run in range(runs)] for t in TASKS},
    }
    for place, key in enumerate(("delta_i", "delta_e")):
        results = Results.from_json(content)
        content[key] = {method: float(np.mean(results.deltas_by_run(method)[place])) for method in METHODS}
    layout.results.write_text(json.dumps(content | conclusions(Results.from_json(content), layout)))
    return layout


def _score(layout: Layout, task: str, model: str, values: Any) -> None:
    identity = {"task": task, "model": model, "split": "test", "num_samples": len(values), "num_malformed": 0}
    one = {"metric": "em", "value": float(values.mean()), "stderr": 0.02, "higher_is_better": True}
    path, samples = layout.score("test", task, model), layout.per_sample("test", task, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**identity, "scores": [one]}))
    kept = [{"id": str(k), "values": {"em": float(value)}} for k, value in enumerate(values)]
    samples.write_text(json.dumps({**identity, "samples": kept}))


def unmarked(card: str) -> str:
    return card.replace("\\", "")


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_all_places_say_the_same(tmp_path: Path, runs: int) -> None:
    layout = work_folder(tmp_path / "work", runs)
    results = json.loads(layout.results.read_text())
    words = results["words"]
    text = build(layout.root).read_text(encoding="utf-8")
    said = "".join(Document(text).words)
    card = unmarked((layout.root / "report" / "MODEL_CARD.md").read_text(encoding="utf-8"))
    terminal = io.StringIO()
    say_words(layout, Console(file=terminal, width=10_000))
    for part in ("headline", "sentence", "caution"):
        assert words[part]
        for place in (said, card, terminal.getvalue()):
            assert words[part] in place, part
    first, *others = results["comparisons"]
    assert (first["method"], first["other"], first["runs"]) == ("VisATB", "EW", runs)
    assert first["p_holm"] is None
    assert len(others) == 4
    if runs < 3:
        assert "no verdict" in words["headline"]
        assert {one["verdict"] for one in results["comparisons"]} == {""}
        assert {one["intervals"] for one in results["comparisons"]} == {"questions only"}
        assert "Verdict on ΔI" not in said + card
        return
    expected = "VisATB against EW: better on average, and no clear difference in evenness (3 runs of each method)"
    assert words["headline"] == expected
    assert first["verdict"] == "ahead"
    assert others[0]["verdict"] == "not told apart"  # TLA against EW: the same truth
    assert first["intervals"] == "questions and training"
    assert "Verdict on ΔI" in said
    assert "| VisATB against EW | +" in card
    assert text.count('class="seed') == 2 * 3 * runs + len(TASKS) * 3 * runs  # ΔI and ΔE of three methods; each task
    assert f"{runs} training runs of each method" in card
