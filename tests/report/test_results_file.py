"""`results.json`: what an older version wrote is read as what it meant, and what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.errors import EvaluationError
from visatb.workdir.layout import Layout
from visatb.workdir.results_file import Metric, Results

OLD: dict[str, Any] = {  # as written before there were repeats
    "baseline": "STL",
    "tasks": ["a", "b"],
    "metrics": {"a": [{"metric": "em", "higher_is_better": True}], "b": [{"metric": "err", "higher_is_better": False}]},
    "methods": {"STL": {"a": [0.5], "b": [0.4]}, "EW": {"a": [0.6], "b": [0.5]}, "DWA": {"a": [0.6], "b": None}},
    "stl_models": {"a": "single:a"},
    "delta_i": {"STL": 0.0, "EW": -2.5, "DWA": None},
}


def test_an_older_file_is_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert Results.read(layout) is None
    layout.results.write_text(json.dumps(OLD))
    results = Results.read(layout)
    assert results
    assert results.metrics["b"] == [Metric("err", higher_is_better=False)]
    assert results.runs_of("EW", "a") == [[0.6]]
    assert results.runs_of("DWA", "b") == []
    assert (results.models_of("STL", "a"), results.models_of("STL", "b")) == (["single:a"], ["STL:b"])
    assert results.models_of("EW", "a") == ["EW"]
    assert results.delta_tasks == ["a", "b"]
    assert "DWA" not in results.delta_i
    assert results.changes("EW") == pytest.approx({"a": 20.0, "b": -25.0})  # by hand: Eq. 9, lower is better on b
    gains, errors = results.deltas_by_run("EW")
    assert (gains, errors) == ([pytest.approx(-2.5)], [pytest.approx(12.5)])
    assert results.deltas_by_run("DWA") == ([], [])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    results = Results.from_json(OLD | {"repeats": {"EW": 2}, "runs": {"EW": {"a": [[0.6], [0.7]]}}})
    layout.results.write_text(json.dumps(results.as_json()))
    assert Results.read(layout) == results
    assert results.models_of("EW", "a") == ["EW", "EW#2"]


@pytest.mark.parametrize(
    "content", [{"tasks": []}, OLD | {"metrics": {"a": 3}}, OLD | {"methods": []}, OLD | {"repeats": {"EW": "x"}}]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    layout = Layout(tmp_path)
    layout.results.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=r"results\.json"):
        Results.read(layout)
