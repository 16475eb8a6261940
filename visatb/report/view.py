"""From a work folder's content to what the page's template shows: tables of ready texts, charts, and data for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from visatb.report import svg
from visatb.report.costs import costs
from visatb.report.figures import unit_interval
from visatb.report.load import COMPONENTS, Cell, Run, is_proxy
from visatb.report.verdict import Comparison, compare, in_words, task_changes

WEIGHT_RANGE = (0.5, 2.0)  # the paper's advice against over-balancing (section 3.5)
PART_LABELS = {"out": "outward", "in": "inward", "difficulty": "difficulty"}
METRICS = {
    "cider": "CIDEr",
    "cider_ptb": "CIDEr (PTB)",
    "em": "EM",
    "iou@0.5": "IoU > 0.5",
    "mean_iou": "mean IoU",
    "gleu": "GLEU",
    "judge": "judged",
}
FRACTIONS = ("em", "iou@0.5", "mean_iou", "gleu")  # shown in percent
TONES = 7  # method colours in report.css


def view(run: Run) -> dict[str, Any]:
    """Everything the template needs but the predictions and the figure files."""
    comparison = compare(run)
    return {
        "title": str(run.experiment.get("name") or run.folder.resolve().name),
        "facts": _facts(run),
        "words": in_words(comparison, _waiting_words(run)),
        "tiles": _tiles(run, comparison),
        "notes": notes(run),
        "matrix": _matrix(run),
        "contributions": _contributions(run),
        "difficulties": _difficulties(run),
        "weights": _weights(run),
        "results": _results(run),
        "losses": _loss_charts(run),
        "whatif": _whatif(run),
        "costs": costs(run),
        "settings": _settings(run),
    }


def script_json(data: object) -> Markup:
    """JSON for a script element: nothing in it can end the element or start a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter, escape in (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")):
        text = text.replace(letter, escape)
    return Markup(text)  # noqa: S704  (escaped above)


def method_classes(methods: Sequence[str]) -> dict[str, str]:
    """Each method's colour class: VisATB has its own, the others take the rest in turn."""
    others = [name for name in methods if name != "VisATB"]
    return {"VisATB": "m0"} | {name: f"m{1 + place % (TONES - 1)}" for place, name in enumerate(others)}


# ---------------------------------------------------------------------------------------------- the top of the page


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = [("Model", name)] if (name := base_model(run)) else []
    facts.append(("Tasks", str(len(run.tasks))))
    if run.weights:
        groups = run.weights.get("groups")
        facts += [("Groups", str(len(groups)))] if groups else []
        facts.append(("Form", f"{run.weights.get('form', 'standard')}"))
        facts.append(("Temperature", f"{run.weights['temperature']:.3g}"))
        alpha = run.weights["alpha"]
        facts.append(("α out / in / D", " / ".join(f"{alpha[part]:.3g}" for part in COMPONENTS)))
    if run.results:
        facts.append(("Baseline", str(run.results.get("baseline", "–"))))
    return facts


def base_model(run: Run) -> str:
    """The model that every run started from: a hub name, or a folder's name without its path."""
    model = run.experiment.get("model")
    path = str(model.get("path") or "") if isinstance(model, Mapping) else ""
    return Path(path).name if path.startswith(("/", ".")) else path


def _waiting_words(run: Run) -> str:
    if not run.weights:
        return "The task weights wait for the proxies and their validation; run `visatb run` again to go on."
    if not run.results:
        return "The task weights are there; the final runs and their tests are still to come."
    return "VisATB and a method to compare it with do not both have all their test scores yet."


def _tiles(run: Run, comparison: Comparison | None) -> list[dict[str, str]]:
    tiles = []
    if comparison:
        c = comparison
        tiles.append(_tile(f"ΔI, {c.method}", f"{c.delta_i[0]:+.2f}%", f"{c.other}: {c.delta_i[1]:+.2f}%"))
        tiles.append(_tile(f"ΔE, {c.method}", f"{c.delta_e[0]:.2f}%", f"{c.other}: {c.delta_e[1]:.2f}%"))
    if run.weights:
        weights = _unit_weights(run.weights)
        low, high = min(weights, key=lambda name: weights[name]), max(weights, key=lambda name: weights[name])
        tiles.append(_tile("λ from – to", f"{weights[low]:.2f} – {weights[high]:.2f}", f"{low} – {high}"))
    summary = costs(run)
    if summary and summary["overhead"]:
        tiles.append(_tile("Cost of measuring", summary["overhead"], summary["overhead_of"]))
    return tiles


def _tile(name: str, value: str, below: str) -> dict[str, str]:
    return {"name": name, "value": value, "below": below}


def notes(run: Run) -> list[str]:
    """What is missing, doubtful or against the paper's advice."""
    found = []
    results = run.results
    if results:
        waiting: dict[str, list[str]] = {}
        for method, figures in results["methods"].items():
            for task in results["tasks"]:
                if not (values := figures.get(task)) or None in values:
                    waiting.setdefault(task, []).append(method)
        found += [f"Waits for a test score of {task}: {', '.join(names)}." for task, names in waiting.items()]
        if results.get("baseline") != "STL":
            found.append(f"No single-task runs (STL): ΔI and ΔE are relative to {results.get('baseline')}.")
    elif run.weights:
        found.append("Waits for the final runs and their test scores.")
    if not run.weights:
        found.append("Waits for the task weights: proxies, their validation, or the matrix are not complete.")
    else:
        for unit, weight in _unit_weights(run.weights).items():
            if not WEIGHT_RANGE[0] <= weight <= WEIGHT_RANGE[1]:
                found.append(f"The weight of {unit}, {weight:.3f}, is outside 0.5 to 2.0: a higher T would mend it.")
        if not run.weights.get("intervals"):
            found.append("The weights have no intervals: per-sample scores or standard errors are missing.")
    for (split, task, model), (bad, count) in sorted(run.malformed.items()):
        if count and bad / count >= 0.05:
            found.append(f"{bad} of {count} answers of {model} on {task} ({split}) could not be read; they score 0.")
    return found


# ---------------------------------------------------------------------------------------------- what was measured


def _matrix(run: Run) -> dict[str, Any] | None:
    if not run.matrix:
        return None
    matrix, tasks = run.matrix, [str(task) for task in run.matrix["tasks"]]
    rows = []
    for kind in ("base", "mini", "plus_mini", "single", "single_mini"):
        entry = matrix.get(kind) or {}
        nested = all(isinstance(value, Mapping) for value in entry.values())
        errors = (matrix.get("stderr") or {}).get(kind) or {}
        for unit, figures in entry.items() if nested else [("", entry)]:
            spread = errors.get(unit, {}) if nested else errors
            if figures:
                cells = [(_plain(figures.get(task)), _spread(spread.get(task))) for task in tasks]
                rows.append({"name": f"{kind}:{unit}" if unit else kind, "cells": cells})
    counts = matrix.get("num_samples") or {}
    return {"tasks": tasks, "rows": rows, "counts": [counts.get(task) for task in tasks] if counts else None}


def _contributions(run: Run) -> dict[str, Any] | None:
    if not run.weights:
        return None
    weights = run.weights
    units = list(weights["difficulties"])
    off = [abs(v) for i, row in enumerate(weights["contributions"]) for j, v in enumerate(row) if i != j and v]
    top = max(off, default=1.0)
    rows = []
    for i, (unit, values) in enumerate(zip(units, weights["contributions"], strict=True)):
        cells = [_heat(value, top, i == j, unit, units[j]) for j, value in enumerate(values)]
        rows.append({"name": unit, "cells": cells, "mean": _plain(weights["mean_contributions"]["out"][unit], 4)})
    means = [_plain(weights["mean_contributions"]["in"][unit], 4) for unit in units]
    return {"units": units, "rows": rows, "means": means, "top": f"{top:.2f}"}


def _heat(value: float | None, top: float, own: bool, source: str, target: str) -> dict[str, Any]:
    if value is None:
        return {"text": "–", "css": "none", "share": 0, "hint": f"{source} to {target}: left out"}
    share = min(1.0, abs(value) / top)
    css = "own" if own else ("pos" if value >= 0 else "neg") + (" strong" if share > 0.55 else "")
    text = f"{value:.3f}".replace("-", "−")
    return {"text": text, "css": css, "share": round(100 * share), "hint": f"{source} to {target}: {value:.4f}"}


def _difficulties(run: Run) -> dict[str, Any] | None:
    if not run.weights:
        return None
    values = run.weights["difficulties"]
    form = run.weights.get("difficulty_form", "real")
    return {"chart": svg.difficulty_bars(values), "precise": form == "precise"}


def _unit_weights(weights: Mapping[str, Any]) -> dict[str, float]:
    groups = weights.get("groups") or {}
    return {unit: float(weights["weights"][groups.get(unit, [unit])[0]]) for unit in weights["difficulties"]}


def _weights(run: Run) -> dict[str, Any] | None:
    if not run.weights:
        return None
    weights = run.weights
    groups, totals = weights.get("groups") or {}, _unit_weights(weights)
    parts: dict[str, list[tuple[str, float]]] = {}
    intervals, rows = {}, []
    for unit, total in totals.items():
        components = [weights["components"][part][unit] for part in COMPONENTS]
        shares = [weights["alpha"][part] * value for part, value in zip(COMPONENTS, components, strict=True)]
        parts[unit] = [(f"part-{part}", share) for part, share in zip(COMPONENTS, shares, strict=True)]
        interval = unit_interval(weights, unit)
        if interval:
            intervals[unit] = interval
        rows.append(
            {
                "name": unit,
                "tasks": ", ".join(groups.get(unit, [])),
                "scores": [
                    _plain(score, 4)
                    for score in (
                        weights["mean_contributions"]["out"][unit],
                        weights["mean_contributions"]["in"][unit],
                        weights["difficulties"][unit],
                    )
                ],
                "components": [f"{value:.4f}" for value in components],
                "total": f"{total:.4f}",
                "interval": f"{interval[0]:.3f} – {interval[1]:.3f}" if interval else "–",
                "above": _above(weights, groups.get(unit, [unit])[0]),
            }
        )
    in_units = {task for unit in totals for task in groups.get(unit, [unit])}
    fixed = [(task, f"{weights['weights'][task]:.4g}") for task in weights["tasks"] if task not in in_units]
    names = " ".join(str(task) for task in weights["tasks"])
    values = " ".join(f"{weights['weights'][task]:.4f}" for task in weights["tasks"])
    return {
        "chart": svg.weight_bars(parts, intervals),
        "rows": rows,
        "fixed": fixed,
        "labels": list(PART_LABELS.items()),
        "with_intervals": bool(intervals),
        "temperature": f"{weights['temperature']:.4g}",
        "command": f"--task_names {names} --visatb_weights {values}",
    }


def _above(weights: Mapping[str, Any], task: str) -> str:
    share = (weights.get("intervals") or {}).get(task, {}).get("share_above_1")
    return "–" if share is None else f"{100 * share:.0f}%"


def _whatif(run: Run) -> dict[str, Any] | None:
    """The scores behind λ as arrays by unit, null where left out (weights.js)."""
    if not run.weights:
        return None
    weights = run.weights
    units = list(weights["difficulties"])
    return {
        "units": units,
        "groups": weights.get("groups") or {},
        "tasks": weights["tasks"],
        "fixed": {task: weights["weights"][task] for task, _ in (_weights(run) or {})["fixed"]},
        "out": [weights["mean_contributions"]["out"][unit] for unit in units],
        "in": [weights["mean_contributions"]["in"][unit] for unit in units],
        "difficulty": [weights["difficulties"][unit] for unit in units],
        "temperature": weights["temperature"],
        "alpha": [weights["alpha"][part] for part in COMPONENTS],
    }


# ---------------------------------------------------------------------------------------------- what came out


def _results(run: Run) -> dict[str, Any] | None:
    results = run.results
    if not results:
        return None
    heads = []
    for task in results["tasks"]:
        for place, entry in enumerate(results["metrics"].get(task, [])):
            heads.append((task, place, str(entry["metric"]), bool(entry.get("higher_is_better", True))))
    baseline = str(results.get("baseline", ""))
    columns = [_column(run, *head) for head in heads]
    rows = []
    for method in results["methods"]:
        cells = [column["cells"][method] for column in columns]
        deltas = [(results.get(key) or {}).get(method) for key in ("delta_i", "delta_e")]
        rows.append(
            {
                "name": method,
                "cells": cells,
                "deltas": [("–" if d is None or method == baseline else f"{d:.2f}") for d in deltas],
                "mine": method == "VisATB",
                "baseline": method == baseline,
            }
        )
    _mark_deltas(rows)
    tasks = [(task, len(results["metrics"].get(task, []))) for task in results["tasks"]]
    stl = run.experiment.get("stl_steps")
    return {
        "tasks": [(task, span) for task, span in tasks if span],
        "heads": [{"label": column["label"], "arrow": "↑" if head[3] else "↓"} for head, column in zip(heads, columns)],
        "rows": rows,
        "baseline": baseline,
        "stl_steps": "the final run's number of optimizer steps" if stl == "equal" else "one epoch of its task",
        "with_errors": any(cell["spread"] for column in columns for cell in column["cells"].values()),
        "charts": _result_charts(run),
        "classes": method_classes(list(results["methods"])),
    }


def _column(run: Run, task: str, place: int, metric: str, upwards: bool) -> dict[str, Any]:
    assert run.results is not None
    figures: dict[str, float | None] = {}
    for method, row in run.results["methods"].items():
        values = row.get(task) or []
        figures[method] = values[place] if place < len(values) else None
    known = [value for value in figures.values() if value is not None]
    percent = metric in FRACTIONS and max(map(abs, known), default=2.0) <= 1.5
    rivals = sorted({v for m, v in figures.items() if v is not None and m != "STL"}, reverse=upwards)
    cells = {}
    for method, value in figures.items():
        cell = _test_cell(run, task, method, metric)
        spread = cell.stderr if cell else None
        cells[method] = {
            "text": "waits" if value is None else _figure(value, percent),
            "spread": "" if spread is None or value is None else _figure(spread, percent),
            "css": "waits" if value is None else _rank(value, rivals) if method != "STL" else "",
        }
    return {"label": METRICS.get(metric, metric) + (" %" if percent else ""), "cells": cells}


def _rank(value: float, rivals: Sequence[float]) -> str:
    if len(rivals) < 2:
        return ""
    return "best" if value == rivals[0] else "second" if value == rivals[1] else ""


def _mark_deltas(rows: list[dict[str, Any]]) -> None:
    """The best and second ΔI (highest) and ΔE (lowest) among the methods that are not the baseline."""
    for column in (0, 1):
        texts = [row["deltas"][column] for row in rows]
        rivals = sorted({float(text) for text in texts if text != "–"}, reverse=column == 0)
        for row, text in zip(rows, texts, strict=True):
            row.setdefault("marks", []).append("" if text == "–" else _rank(float(text), rivals))


def _test_cell(run: Run, task: str, method: str, metric: str) -> Cell | None:
    for name in (method, f"{method}:{task}", *([f"single:{task}"] if method == "STL" else [])):
        for cell in run.scores.get(("test", task, name), []):
            if cell.metric == metric:
                return cell
    return None


def _result_charts(run: Run) -> dict[str, Any]:
    results = run.results or {}
    methods = [name for name in results["methods"] if name != results.get("baseline")]
    gains = {name: float(v) for name in methods if (v := (results.get("delta_i") or {}).get(name)) is not None}
    errors = {name: float(v) for name in methods if (v := (results.get("delta_e") or {}).get(name)) is not None}
    charts: dict[str, Any] = {"deltas": svg.delta_bars(gains, errors, "VisATB") if gains else None}
    ordered = sorted(methods, key=lambda name: (name == "VisATB", name == "EW"))
    changes = {name: task_changes(results, name) for name in ordered}
    classes = method_classes(list(results["methods"]))
    tasks = [task for task in results["tasks"] if any(task in row for row in changes.values())]
    charts["changes"] = svg.change_dots(tasks, changes, classes) if tasks else None
    charts["legend"] = [(classes[name], name) for name in reversed(ordered)]
    return charts


def losses(run: Run) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Task → method → (step, mean token loss); single-task runs as one method. Proxies only while there is no final."""
    stl = {name for name in run.histories if name.partition(":")[0] in ("STL", "single")} if "STL" in run.methods else {}
    finals = [name for name in run.histories if name in stl or not is_proxy(name)]
    rank = {name: place for place, name in enumerate(run.methods)}
    models = sorted(finals or run.histories, key=lambda name: (rank.get(name.partition(":")[0], 99), name))
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for model in models:
        shown = "STL" if model in stl else model
        for entry in run.histories[model]:
            for key, value in entry.items():
                if key.startswith("task_loss/") and isinstance(value, int | float) and "step" in entry:
                    task = key.removeprefix("task_loss/")
                    lines.setdefault(task, {}).setdefault(shown, []).append((float(entry["step"]), float(value)))
    order = {task: place for place, task in enumerate(run.tasks)}
    return {
        task: {method: svg.thin(points) for method, points in lines[task].items()}
        for task in sorted(lines, key=lambda task: order.get(task, len(order)))
    }


def _loss_charts(run: Run) -> dict[str, Any] | None:
    lines = losses(run)
    if not lines:
        return None
    methods = list(dict.fromkeys(method for task in lines.values() for method in task))
    classes = method_classes([*run.methods, *(name for name in methods if name not in run.methods)])
    return {
        "panels": [(task, svg.loss_lines(task, task_lines, classes)) for task, task_lines in lines.items()],
        "legend": [(classes[name], name) for name in methods],
        "rows": [
            (task, [f"{task_lines[m][-1][1]:.4f}" if m in task_lines else "–" for m in methods])
            for task, task_lines in lines.items()
        ],
        "methods": methods,
    }


# ---------------------------------------------------------------------------------------------- how to repeat it


def _settings(run: Run) -> dict[str, Any]:
    card = next((run.cards[name] for name in ("VisATB", "EW", *run.cards) if name in run.cards), {})
    facts = [(name, str(version)) for name, version in (card.get("versions") or {}).items() if version]
    hardware = card.get("hardware") or {}
    machine = [str(hardware[key]) for key in ("system", "machine", "cuda") if hardware.get(key)]
    machine += [str(name) for name in hardware.get("gpus") or []]
    git = card.get("git") or {}
    return {
        "yaml": run.experiment_text,
        "versions": facts,
        "machine": ", ".join(machine),
        "commit": f"{git['commit']}{' (with local changes)' if git.get('changed') else ''}" if "commit" in git else "",
        "subsets": json.dumps(run.subsets, indent=1, ensure_ascii=False) if run.subsets else "",
    }


def _figure(value: float, percent: bool) -> str:
    return f"{100 * value:.2f}" if percent else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _plain(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _spread(value: float | None) -> str:
    return "" if value is None else f"± {value:.4f}"
