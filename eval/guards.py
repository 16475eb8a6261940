"""What the proxies do to a guard: a task with validation data only, whose score shall not fall (docs/weighting.md).

A guard's score files are of the split `guard`, as those of λ's own tasks are of `val`. Nothing here enters λ. A fall is
the base model's score less that of a proxy, turned round for scores that are better when lower. Its noise is the
standard error over the guard's questions: of the paired differences where the scores of single questions are there,
else of two independent scores, which is more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval.collect import PROXIES, proxy_of, read_folder
from eval.errors import EvaluationError
from eval.repeats import split_repeat
from eval.scores import SampleFile, ScoreFile

SPLIT = "guard"
_SHOWN = 3

Scores = Mapping[tuple[str, str], ScoreFile]
Samples = Mapping[tuple[str, str], SampleFile]


def measure(folder: Path, limits: Mapping[str, float]) -> dict[str, Any]:
    """What stands in the weights file: by guard its limit, the base's score, each proxy's fall, each unit's effect.

    Args:
        folder: with the score files.
        limits: by how much the score of each guard may fall, in the units of its metric.

    Raises:
        EvaluationError: a guard without a score of the base model, or without one of any proxy.
    """
    found, samples = read_folder(folder, SPLIT)
    scores = {(score.task, score.model): score for score in found}
    return {task: _guard(task, limit, scores, samples) for task, limit in limits.items()}


def _guard(task: str, limit: float, scores: Scores, samples: Samples) -> dict[str, Any]:
    models = [model for name, model in scores if name == task and proxy_of(model)[0] in PROXIES and model != "base"]
    if (task, "base") not in scores or not models:
        raise EvaluationError(f"guard {task}: no score file of {'a proxy' if models == [] else 'the base model'}")
    base = scores[task, "base"]

    def lost(model: str, reference: str) -> dict[str, float | None]:
        fall, noise = _fall(scores, samples, task, model, reference)
        return {"fall": fall, "stderr": noise}

    falls = {model: {"value": scores[task, model].first.value, **lost(model, "base")} for model in models}
    return {
        "limit": limit,
        "metric": base.first.metric,
        "num_samples": base.num_samples,
        "base": {"value": base.first.value, "stderr": base.first.stderr},
        "models": falls,
        "units": {
            unit: lost(model, reference)
            for model in models
            if (unit := proxy_of(model)[1]) and (reference := _reference(model, models)) and split_repeat(model)[1] == 1
        },
    }


def _reference(model: str, models: list[str]) -> str | None:
    """The model that a unit's data were added to."""
    kind = proxy_of(model)[0]
    if kind == "plus_mini":
        return "mini" if "mini" in models else None
    return "base" if kind == "single" else None


def _fall(scores: Scores, samples: Samples, task: str, model: str, reference: str) -> tuple[float, float | None]:
    before, after = (scores[task, name].first for name in (reference, model))
    fall = before.value - after.value if before.higher_is_better else after.value - before.value
    files = [samples.get((task, name)) for name in (reference, model)]
    pairs = [file.columns.get(before.metric) for file in files if file is not None]
    if len(pairs) == 2 and all(pairs) and files[0].ids == files[1].ids:  # type: ignore[union-attr]
        (first, weights), (second, others) = pairs  # type: ignore[misc]
        if set(weights) == set(others) == {1.0} and len(first) > 1:
            differences = np.subtract(first, second)
            return fall, float(differences.std(ddof=1) / math.sqrt(len(first)))
    if before.stderr is None or after.stderr is None:
        return fall, None
    return fall, math.hypot(before.stderr, after.stderr)


def warnings(guards: Mapping[str, Any]) -> list[str]:
    """One text for each guard that a proxy already harms by more than its limit."""
    texts = []
    for task, guard in guards.items():
        over = {name: one for name, one in guard["models"].items() if one["fall"] > guard["limit"]}
        if not over:
            continue
        worst = sorted(over, key=lambda name: -over[name]["fall"])
        shown = ", ".join(f"{name} by {_figure(over[name])}" for name in worst[:_SHOWN])
        more = f" and {len(worst) - _SHOWN} more" if len(worst) > _SHOWN else ""
        sure = [name for name in worst if over[name]["fall"] - guard["limit"] > 2 * (over[name]["stderr"] or math.inf)]
        noise = "" if sure else "; all of these within two standard errors of its questions"
        texts.append(
            f"guard {task}: proxies fall below the base model's {guard['base']['value']:.3f} by more than "
            f"{guard['limit']:g}: {shown}{more}{noise}{_most(guard)}"
        )
    return texts


def _figure(one: Mapping[str, Any]) -> str:
    noise = "" if one["stderr"] is None else f" ± {one['stderr']:.3f}"
    return f"{one['fall']:.3f}{noise}"


def _most(guard: Mapping[str, Any]) -> str:
    """The unit whose data harm it most, where that is more than noise."""
    units = {u: one for u, one in guard["units"].items() if one["fall"] > 2 * (one["stderr"] or math.inf)}
    if not units:
        return "; no single task's data are seen to be the cause"
    worst = max(units, key=lambda unit: units[unit]["fall"])
    return f"; most by the data of {worst} ({_figure(units[worst])})"
