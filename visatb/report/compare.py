"""Two work folders side by side: the settings that differ, λ, difficulties and test figures with their differences.

It compares what was measured, not methods: every figure is of one training run, and where nothing but chance differs
between two folders, their figures differ all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eval.files import write_text
from eval.metrics import find_measure
from visatb.experiment.schema import Experiment
from visatb.report.load import ReportError, Run, load
from visatb.report.resources import asset, template
from visatb.report.version import version
from visatb.workdir.results_file import Metric, Results
from visatb.workdir.scores import Cell

GONE = "–"
Table = dict[str, Any]  # title, said, head, rows of texts


def build_comparison(first: Path, second: Path) -> Path:
    """Write `first`/report/compare-NAME.html, NAME being `second`'s; its path. ReportError as for a report."""
    runs = load(first), load(second)
    names = _names(first, second)
    page = template("compare.html").render(
        names=names,
        settings=changed_settings(runs[0].experiment, runs[1].experiment),
        tables=[table for table in (weights(*runs, names), results(*runs, names)) if table],
        notes=notes(*runs),
        css=Markup(asset("report.css")),
        version=version(),
    )
    path = first / "report" / f"compare-{second.resolve().name}.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error})") from error
    return path


def _names(first: Path, second: Path) -> tuple[str, str]:
    a, b = first.resolve(), second.resolve()
    return (a.name, b.name) if a.name != b.name else (str(a), str(b))


def changed_settings(a: Experiment, b: Experiment) -> list[tuple[str, str, str]]:
    """(key with dots, value of a, value of b) wherever the two experiments differ."""
    left, right = (dict(_flat(experiment.model_dump(mode="json", by_alias=True))) for experiment in (a, b))
    keys = [*left, *(key for key in right if key not in left)]
    pairs = [(key, left.get(key, GONE), right.get(key, GONE)) for key in keys]
    return [(key, before, after) for key, before, after in pairs if before != after]


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, GONE if value is None or value in ([], {}) else str(value)


def weights(a: Run, b: Run, names: Sequence[str]) -> Table | None:
    """λ with its interval and D of each task, in both; None unless both have weights."""
    if not a.weights or not b.weights:
        return None
    rows = []
    for task in dict.fromkeys([*a.weights["tasks"], *b.weights["tasks"]]):
        pair = [run.weights["weights"].get(task) for run in (a, b) if run.weights]
        spans = [_interval(run, task) for run in (a, b)]
        hard = [_difficulty(run, task) for run in (a, b)]
        cells = [text for value, span in zip(pair, spans, strict=True) for text in (_text(value), span)]
        rows.append([task, *cells, _difference(*pair), *map(_text, hard), _difference(*hard)])
    head = ["Task"]
    head += [text for name in names for text in (f"λ, {name}", "95%")]
    head += ["change", *(f"D, {name}" for name in names), "change"]
    note = "The intervals are over validation questions only: another seed of the proxies moves λ, too."
    return {"title": "Task weights λ and difficulties D", "said": note, "head": head, "rows": rows}


def _difficulty(run: Run, task: str) -> float | None:
    if not run.weights:
        return None
    groups = run.weights.get("groups", {})
    unit = next((name for name, members in groups.items() if task in members), task)
    return run.weights["difficulties"].get(unit)


def _interval(run: Run, task: str) -> str:
    found = run.weights.get("intervals", {}).get(task) if run.weights else None
    return f"{found['low']:.3f} – {found['high']:.3f}" if found else GONE


def results(a: Run, b: Run, names: Sequence[str]) -> Table | None:
    """Test figures of the methods that both have, with the difference and its standard error; None without any."""
    if not a.results or not b.results:
        return None
    rows = []
    for method in (name for name in a.methods if name in b.methods):
        for task in a.results.tasks:
            for index, metric in enumerate(a.results.metrics.get(task, [])):
                pair = [_value(run.results, method, task, index, metric) for run in (a, b)]
                cells = [_cell(run, method, task, metric.name) for run in (a, b)]
                label = f"{find_measure(metric.name).short} {'↑' if metric.higher_is_better else '↓'}"
                rows.append([method, task, label, *map(_text, pair), _difference(*pair) + _noise(pair, cells)])
        if a.results.baseline == b.results.baseline:
            for label, (first, second) in (
                ("ΔI% ↑", (a.results.delta_i, b.results.delta_i)),
                ("ΔE% ↓", (a.results.delta_e, b.results.delta_e)),
            ):
                deltas = [first.get(method), second.get(method)]
                rows.append([method, "all", label, *map(_text, deltas), _difference(*deltas)])
    if not rows:
        return None
    note = "±: standard error of the difference as if the questions were not the same ones, which is on the safe side."
    return {"title": "Test figures", "said": note, "head": ["Method", "Task", "Metric", *names, "change"], "rows": rows}


def _value(results: Results | None, method: str, task: str, index: int, metric: Metric) -> float | None:
    """A method's figure of a task's metric, if that is the one at this index."""
    if results is None:
        return None
    names = [entry.name for entry in results.metrics.get(task, [])]
    values = results.methods.get(method, {}).get(task) or []
    return values[index] if index < len(values) and names[index : index + 1] == [metric.name] else None


def _cell(run: Run, method: str, task: str, metric: str) -> Cell | None:
    return next((cell for cell in run.test_cells(task, method) if cell.metric == metric), None)


def _noise(pair: Sequence[float | None], cells: Sequence[Cell | None]) -> str:
    errors = [cell.stderr for cell in cells if cell is not None and cell.stderr is not None]
    return f" ± {math.hypot(*errors):.4f}" if len(errors) == 2 and None not in pair else ""


def notes(a: Run, b: Run) -> list[str]:
    """What must be known before two folders are compared."""
    found = [
        "Every figure is of one training run: two folders differ by chance also where no setting does. What is better "
        "is not to be read from one pair of runs."
    ]
    if a.results and b.results and a.results.baseline != b.results.baseline:
        found.append(
            f"ΔI and ΔE are left out: they are relative to {a.results.baseline} in one and {b.results.baseline} in the "
            "other."
        )
    for what, there in (("task weights", (a.weights, b.weights)), ("results", (a.results, b.results))):
        if not all(there):
            found.append(f"Not both have {what} yet.")
    other = []
    for key in a.scores.keys() & b.scores.keys():
        ids = [cells[0].ids for cells in (a.scores[key], b.scores[key]) if cells]
        if len(ids) == 2 and all(ids) and ids[0] != ids[1]:
            other.append(f"{key[1]} ({key[0]})")
    if other:
        found.append(f"Other questions were asked of {', '.join(sorted(set(other)))}: those figures do not compare.")
    return found


def _text(value: float | None) -> str:
    return GONE if value is None else f"{value:.4f}".replace("-", "−")


def _difference(a: float | None, b: float | None) -> str:
    return GONE if a is None or b is None else f"{b - a:+.4f}".replace("-", "−")
