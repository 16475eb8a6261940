"""Scores by a language model, from the `judge` metrics of `eval/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.answers import read_answers
from eval.metrics import load_metric
from llava.eval.benchmark import Benchmark, Result, Score


def judge(benchmark: Benchmark, answers: Path, data: Path) -> Result:
    """The judge's value for an answer file, its parts, and who judged how.

    Raises eval.errors.EvaluationError (a ValueError) where the judge fails; what it said until then is kept.
    """
    assert benchmark.judge is not None
    scored = load_metric(benchmark.judge, **benchmark.judge_options(data)).score(read_answers(answers))
    [column] = scored.columns
    told: dict[str, Any] = dict(column.details["judge"])
    groups: dict[str, dict[str, Any]] = {}
    for kind in ("categories", "capabilities", "combinations"):
        groups |= {name: values for name, values in told.pop(kind, {}).items() if name not in groups}
    chief = Score(column.metric, column.mean(), column.stderr(), scale=1.0)
    return Result([chief], sum(scored.malformed), groups, {"judge": told})
