"""What `results.json` says of its own figures: all comparisons of methods, and the first of them in words."""

from __future__ import annotations

from functools import partial
from typing import Any

from eval.weights import read_computed
from visatb.workdir.contents import read_matrix
from visatb.workdir.layout import Layout
from visatb.workdir.results_file import Results
from visatb.workdir.scores import read_cells
from visatb.workdir.verdict import Change, Comparison, compare, noise_of_proxies
from visatb.workdir.words import in_words

WAITING = "VisATB and a method to compare it with do not both have all their test scores yet."


def conclusions(results: Results, layout: Layout) -> dict[str, Any]:
    """`comparisons` and `words` for `results.json`; EvaluationError where a score, weights or matrix is damaged."""
    weights = read_computed(layout.weights) if layout.weights.exists() else None
    noise = noise_of_proxies(weights, read_matrix(layout))
    found = compare(results, partial(read_cells, layout), noise)
    words = in_words(found[0] if found else None, WAITING)
    return {"comparisons": [as_json(comparison) for comparison in found], "words": vars(words)}


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison for a file; `p_holm` is null for the first, which stands by itself."""
    c = comparison
    return {
        "method": c.method,
        "other": c.other,
        "runs": c.runs,
        "intervals": c.kind,
        "delta_i": _change(c.gain),
        "delta_e": _change(c.error),
        "tasks": {task: _change(change) for task, change in c.by_task.items()},
        "p_holm": c.adjusted,
        "verdict": c.verdict,
        "between_runs": c.spread,
        "between_runs_from": c.source,
    }


def _change(change: Change) -> dict[str, Any]:
    low, high = change.interval or (None, None)
    return {"difference": change.value, "low": low, "high": high, "p": change.p, "runs": list(change.runs)}
