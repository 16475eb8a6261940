"""What each run cost, and what the measuring cost beside one final run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eval.repeats import split_repeat
from visatb.report.load import Run, is_proxy
from visatb.workdir.contents import ModelCost


def costs(run: Run) -> dict[str, Any] | None:
    """Rows by run with times as texts, sums, and the overhead of the proxies; None while nothing has run."""
    if not run.cost:
        return None
    longest = max(_seconds(entry) for entry in run.cost.values()) or 1.0
    order = {name: index for index, name in enumerate(run.methods)}
    models = sorted(run.cost, key=lambda name: (not is_proxy(name), order.get(_method(name), 99)))
    rows = []
    for model in models:
        entry = run.cost[model]
        rows.append(
            {
                "name": model,
                "kind": "proxy" if is_proxy(model) else "final",
                "samples": _count(entry.get("samples")),
                "steps": _count(entry.get("steps")),
                "train": _time(entry.get("train_seconds")),
                "infer": _time(entry.get("infer_seconds")),
                "device": str(entry.get("device") or "–"),
                "share": round(100 * _seconds(entry) / longest, 1),
            }
        )
    total = sum(_seconds(entry) for entry in run.cost.values())
    proxies = [model for model in models if is_proxy(model)]
    final = next((name for name in ("VisATB", "EW") if name in run.cost), None)
    return {"rows": rows, "total": _time(total), **_overhead(run, proxies, final)}


def _method(model: str) -> str:
    return split_repeat(model)[0].partition(":")[0]


def _overhead(run: Run, proxies: Iterable[str], final: str | None) -> dict[str, str]:
    """Proxies against one final run, in training time and in samples (the paper's R_large + N·R_mini)."""
    if final is None:
        return {"overhead": "", "overhead_of": ""}
    cost: Mapping[str, Mapping[str, Any]] = run.cost
    ratios = {}
    for key in ("train_seconds", "samples"):
        whole = cost[final].get(key) or 0
        parts = [cost[model].get(key) or 0 for model in proxies]
        if whole and parts:
            ratios[key] = sum(parts) / whole
    shown = ratios.get("train_seconds", ratios.get("samples"))
    if shown is None:
        return {"overhead": "", "overhead_of": ""}
    samples = f"; {ratios['samples']:.2f}× in samples" if "train_seconds" in ratios and "samples" in ratios else ""
    unit = "training time" if "train_seconds" in ratios else "samples"
    return {"overhead": f"{shown:.2f}×", "overhead_of": f"{unit} of the final run {final}{samples}"}


def _seconds(entry: ModelCost) -> float:
    return float(entry.get("train_seconds") or 0) + float(entry.get("infer_seconds") or 0)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _time(seconds: Any) -> str:
    """`42.0 s`, `7 min 05 s` or `3 h 20 min`; a dash where nothing was measured."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"
