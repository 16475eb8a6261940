"""Methods against a baseline: `python eval/overall.py TABLE [--baseline STL | --zero]` gives ΔI% and ΔE%, or ΔI_zero%.

TABLE is CSV (first column: method; header of the others: TASK or TASK/METRIC, with ↓ at its end where lower is
better) or JSON ({"methods": {method: {task: value or {metric: value}}}, "higher_is_better": {task: bool, or
{metric: bool}}}).
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, from anywhere: the package's parent folder must be on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.errors import EvaluationError, bad_input
from eval.files import read_json, write_json

Key = tuple[str, str]  # task, metric ("" where a task has one only)
LOWER = "↓"
# ΔI_zero averages exactly these; the spellings that tables use for them, lower-cased without marks.
ZERO_SHOT = {
    "TextVQA": {"textvqa", "textvqaval"},
    "POPE": {"pope"},
    "MME": {"mme", "mmeperception"},
    "SQA^I": {"sqai", "sqa", "sqaimg", "scienceqa", "scienceqaimg"},
    "MMBench": {"mmbench", "mmb", "mmbenchen"},
    "SEED^I": {"seedi", "seed", "seed1", "seedimg", "seedbenchimg", "seedbenchimage"},
    "MM-Vet": {"mmvet"},
}


@dataclass(frozen=True)
class Table:
    """Figures of methods by task and metric, and each one's direction."""

    methods: dict[str, dict[Key, float]]
    higher_is_better: dict[Key, bool]


@dataclass(frozen=True)
class Overall:
    """Eq. 9 in percent for one method: the mean improvement, the mean loss, and each task's I_i."""

    improvement: float
    error: float
    tasks: dict[str, float]


def overall(table: Table, baseline: str) -> dict[str, Overall]:
    """ΔI% and ΔE% of every method, Eq. 9 (the baseline's own are 0).

    A task of several metrics counts once, with their mean. EvaluationError names the method and task where a figure
    is missing, or where the baseline's is not positive.
    """
    if baseline not in table.methods:
        raise EvaluationError(f"no method {baseline!r} to compare with; the table has {', '.join(table.methods)}")
    base = table.methods[baseline]
    for key in table.higher_is_better:
        if base.get(key, 0.0) <= 0:
            raise EvaluationError(f"{baseline} on {_name(key)}: a baseline needs a figure above 0, not {base.get(key)}")
    return {method: _compare(method, figures, base, table) for method, figures in table.methods.items()}


def improvement(figures: Sequence[Any], base: Sequence[Any], signs: Sequence[int]) -> Any:
    """I_i of Eq. 9 in percent, for one task: the mean of its metrics' relative changes against the baseline.

    `signs`: 1 for each metric where higher is better, else −1. A figure is a number, or an array of any shape that
    broadcasts with the others; so is the result.
    """
    parts = [sign * (figure - below) / below for figure, below, sign in zip(figures, base, signs, strict=True)]
    return 100 * sum(parts) / len(parts)


def loss(improvements: Iterable[float]) -> float:
    """ΔE% of Eq. 9: the mean over tasks of what was lost, from their I_i%."""
    losses = [max(0.0, -value) for value in improvements]
    return math.fsum(losses) / len(losses)


def _compare(method: str, figures: Mapping[Key, float], base: Mapping[Key, float], table: Table) -> Overall:
    keys: dict[str, list[Key]] = {}
    for key in table.higher_is_better:
        if key not in figures:
            raise EvaluationError(f"{method} has no figure on {_name(key)}")
        keys.setdefault(key[0], []).append(key)
    tasks = {
        task: improvement(
            [figures[key] for key in of_task],
            [base[key] for key in of_task],
            [1 if table.higher_is_better[key] else -1 for key in of_task],
        )
        for task, of_task in keys.items()
    }
    return Overall(math.fsum(tasks.values()) / len(tasks), loss(tasks.values()), tasks)


def zero_shot(table: Table) -> Table:
    """The seven columns that ΔI_zero averages (of MME the perception sum); EvaluationError if one is missing."""
    chosen: dict[Key, Key] = {}
    for name, spellings in ZERO_SHOT.items():
        keys = [key for key in table.higher_is_better if _plain(key[0]) in spellings]
        if name == "MME":
            keys = [key for key in keys if _plain(key[1]) in ("", "perception")]
        if len({key[0] for key in keys}) != 1:
            raise EvaluationError(f"ΔI_zero needs exactly one column of {name}; the table has {len(keys)}")
        chosen |= {key: (name, key[1]) for key in keys}
    methods = {
        method: {new: figures[old] for old, new in chosen.items() if old in figures}
        for method, figures in table.methods.items()
    }
    return Table(methods, {new: table.higher_is_better[old] for old, new in chosen.items()})


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _name(key: Key) -> str:
    return "/".join(part for part in key if part)


def read_table(path: Path) -> Table:
    """A table from CSV or (by its suffix) JSON; EvaluationError names the file, the method and the task."""
    try:
        table = _from_json(read_json(path)) if path.suffix.lower() == ".json" else _from_csv(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise EvaluationError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if not table.higher_is_better:
        raise EvaluationError(f"{path}: the table has no tasks")
    return table


def _from_csv(content: bytes) -> Table:
    rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if any(cell.strip() for cell in row)]
    if not rows:
        raise EvaluationError("the table is empty")
    header = [cell.strip() for cell in rows[0]]
    keys = [_key(name) for name in header[1:]]
    if len(set(keys)) != len(keys):
        raise EvaluationError("a column comes twice")
    methods: dict[str, dict[Key, float]] = {}
    for row in rows[1:]:
        method, cells = row[0].strip(), [cell.strip() for cell in row[1:]]
        if method in methods or len(cells) > len(keys):
            raise EvaluationError(f"method {method!r} comes twice, or has more cells than the header")
        pairs = zip(keys, cells, strict=False)
        methods[method] = {key: _number(cell, f"{method} on {_name(key)}") for key, cell in pairs if cell}
    return Table(methods, {key: not name.endswith(LOWER) for key, name in zip(keys, header[1:], strict=True)})


def _key(name: str) -> Key:
    task, _, metric = name.rstrip("↑↓ ").partition("/")
    return task.strip(), metric.strip()


def _from_json(content: Any) -> Table:
    methods = content.get("methods") if isinstance(content, dict) else None
    if not isinstance(methods, dict) or not all(isinstance(row, dict) for row in methods.values()):
        raise EvaluationError("a JSON table needs `methods`: {method: {task: value or {metric: value}}}")
    figures = {
        method: {
            key: _number(value, f"{method} on {_name(key)}") for key, value in _flat(row).items() if value is not None
        }
        for method, row in methods.items()
    }
    upwards = _flat(content.get("higher_is_better", {}))
    keys = list(dict.fromkeys(key for row in figures.values() for key in row))
    unknown = [_name(key) for key in upwards if not any(key in (known, (known[0], "")) for known in keys)]
    if unknown or not all(isinstance(flag, bool) for flag in upwards.values()):
        raise EvaluationError(f"`higher_is_better` must map the table's tasks to true or false; unknown: {unknown}")
    return Table(figures, {key: upwards.get(key, upwards.get((key[0], ""), True)) for key in keys})


def _flat(row: Any) -> dict[Key, Any]:
    if not isinstance(row, dict):
        raise EvaluationError("`higher_is_better` must be an object")
    flat: dict[Key, Any] = {}
    for task, entry in row.items():
        flat |= (
            {(task, metric): value for metric, value in entry.items()}
            if isinstance(entry, dict)
            else {(task, ""): entry}
        )
    return flat


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise EvaluationError(f"{what} must be a finite number, not {value!r}")
    return number


def summary(results: Mapping[str, Overall], zero: bool) -> str:
    """One line per method."""
    width = max(len(method) for method in results)
    lines = [f"{'':{width}}" + ("  ΔI_zero%" if zero else "      ΔI%      ΔE%")]
    for method, result in results.items():
        lines.append(f"{method:{width}}  {result.improvement:7.2f}" + ("" if zero else f"  {result.error:7.2f}"))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    parser = argparse.ArgumentParser(description="ΔI% and ΔE% of methods against a baseline (Eq. 9).")
    parser.add_argument("table", type=Path, metavar="TABLE", help="CSV, or JSON where its name ends so")
    parser.add_argument("--baseline", help="method to compare with (default: STL, with --zero EW)")
    parser.add_argument("--zero", action="store_true", help="ΔI_zero%% over the seven zero-shot benchmarks instead")
    parser.add_argument("--output", type=Path, metavar="F", help="write the results here (JSON)")
    arguments = parser.parse_args(argv)
    baseline = arguments.baseline or ("EW" if arguments.zero else "STL")
    try:
        table = read_table(arguments.table)
        try:
            results = overall(zero_shot(table) if arguments.zero else table, baseline)
        except EvaluationError as error:
            raise EvaluationError(f"{arguments.table}: {error}") from error
        if arguments.output:
            write_json(arguments.output, {"baseline": baseline, "methods": _as_json(results, arguments.zero)})
    except EvaluationError as error:
        return bad_input(error)
    print(summary(results, arguments.zero))
    return 0


def _as_json(results: Mapping[str, Overall], zero: bool) -> dict[str, Any]:
    figures = {}
    for method, result in results.items():
        whole = (
            {"delta_i_zero": result.improvement} if zero else {"delta_i": result.improvement, "delta_e": result.error}
        )
        figures[method] = {**whole, "tasks": result.tasks}
    return figures


if __name__ == "__main__":
    sys.exit(main())
