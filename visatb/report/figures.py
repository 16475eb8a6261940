"""The figures as PDF and PNG files, for papers and slides."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from eval.files import whole_file
from eval.weights import COMPONENTS
from visatb.report.load import Run
from visatb.report.resources import colour
from visatb.report.svg import TONES, Points, method_classes
from visatb.report.tree import read_tree

logger = logging.getLogger(__name__)

PART_COLOURS = {"out": colour("out"), "in": colour("in"), "difficulty": colour("hard")}
PART_NAMES = {"out": r"α$_{out}$·λ$_{out}$", "in": r"α$_{in}$·λ$_{in}$", "difficulty": r"α$_D$·λ$_D$"}
METHOD_COLOURS = tuple(colour(f"m{index}") for index in range(TONES))
INK = colour("ink")
SIGNED = LinearSegmentedColormap.from_list("signed", [colour(name) for name in ("neg", "bg", "pos")])
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


def write_figures(run: Run, losses: Mapping[str, Mapping[str, Points]], folder: Path) -> list[str]:
    """Write NAME.pdf and NAME.png for all figures whose data is there; their names."""
    draws: dict[str, Callable[[], Figure]] = {}
    if run.weights:
        weights = run.weights
        draws["contributions"] = lambda: _contributions(weights)
        draws["difficulties"] = lambda: _difficulties(weights)
        draws["weights"] = lambda: _weights(weights)
    if run.grouping:
        grouping = run.grouping
        draws["groups"] = lambda: _groups(grouping)
    deltas = _deltas_of(run)
    if deltas:
        draws["results"] = lambda: _results(deltas, {name: run.deltas(name) for name in deltas})
    if losses:
        draws["training_loss"] = lambda: _losses(losses)
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE), warnings.catch_warnings(record=True) as caught:
        for name, draw in draws.items():
            figure = draw()
            for suffix, metadata in (("pdf", {"CreationDate": None, "Producer": None}), ("png", {"Software": None})):
                with whole_file(folder / f"{name}.{suffix}") as temporary:
                    figure.savefig(temporary, format=suffix, dpi=200, bbox_inches="tight", metadata=metadata)
    for message in sorted({str(warning.message) for warning in caught}):
        logger.warning("figures: %s", message)  # such as a letter that matplotlib's font does not have
    return list(draws)


def plain(text: str) -> str:
    """Text as matplotlib draws it letter for letter: a `$` would start a formula."""
    return text.replace("$", r"\$")


def _names(weights: Mapping[str, Any]) -> list[str]:
    return [plain(name) for name in weights["difficulties"]]


def _contributions(weights: Mapping[str, Any]) -> Figure:
    names = _names(weights)
    matrix = np.array([[np.nan if v is None else v for v in row] for row in weights["contributions"]], dtype=float)
    off = np.where(np.eye(len(names), dtype=bool), np.nan, matrix)
    top = float(np.nanmax(np.abs(off))) if np.isfinite(off).any() else 1.0
    side = 1.6 + 0.62 * len(names)
    figure = Figure(figsize=(side + 0.9, side))
    axes = figure.add_subplot()
    image = axes.imshow(off, cmap=SIGNED, vmin=-top or -1, vmax=top or 1)
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        strong = row != column and abs(value) > 0.6 * top
        text = f"{value:.3f}".replace("-", "−") if np.isfinite(value) else "–"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if strong else INK)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("to")
    axes.set_ylabel("from")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03).outline.set_visible(False)
    return figure


def _groups(grouping: Mapping[str, Any]) -> Figure:
    tree = read_tree(grouping)
    figure = Figure(figsize=(5.2, 0.8 + 0.34 * len(tree.leaves)))
    axes = figure.add_subplot()
    for join in tree.joins:
        x = [join.left[0], join.height, join.height, join.right[0]]
        y = [join.left[1], join.left[1], join.right[1], join.right[1]]
        axes.plot(x, y, color=METHOD_COLOURS[0] if join.inside else METHOD_COLOURS[1], linewidth=1.4)
    axes.axvline(tree.cut, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(tree.leaves)), [plain(name) for name in tree.leaves])
    axes.set_xlabel("distance (1 − cosine)")
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    return figure


def _difficulties(weights: Mapping[str, Any]) -> Figure:
    values = [np.nan if value is None else value for value in weights["difficulties"].values()]
    figure = Figure(figsize=(5.2, 0.8 + 0.34 * len(values)))
    axes = figure.add_subplot()
    bars = axes.barh(_names(weights), values, color=PART_COLOURS["difficulty"], height=0.62)
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.set_xlim(min(0.0, np.nanmin([*values, 0])), max(1.0, np.nanmax([*values, 1])))
    axes.set_xlabel("difficulty D")
    axes.invert_yaxis()
    return figure


def _weights(weights: Mapping[str, Any]) -> Figure:
    names, done = _names(weights), np.zeros(len(weights["difficulties"]))
    figure = Figure(figsize=(5.6, 1.2 + 0.34 * len(names)))
    axes = figure.add_subplot()
    beside = axes.get_yaxis_transform()
    for part in COMPONENTS:
        values = weights["alpha"][part] * np.array(list(weights["components"][part].values()), dtype=float)
        axes.barh(names, values, left=done, height=0.62, color=PART_COLOURS[part], label=PART_NAMES[part])
        done = done + values
    for row, unit in enumerate(weights["difficulties"]):
        for kind, width in (("", 1.2), ("questions", 3.5)):
            interval = unit_interval(weights, unit, kind)
            if interval:
                axes.plot(interval, [row, row], color=INK, linewidth=width)
        axes.text(1.09, row, f"{done[row]:.3f}", va="center", ha="right", fontsize=8, transform=beside)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlabel(f"λ (T = {weights['temperature']:.4g})")
    axes.invert_yaxis()
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8)
    return figure


def unit_interval(weights: Mapping[str, Any], unit: str, kind: str = "") -> tuple[float, float] | None:
    """The interval of a unit's λ (that of any of its tasks), None without intervals.

    `kind` "questions": that of the questions alone, where the other one holds the noise of training, too.
    """
    members = weights.get("groups", {}).get(unit, [unit])
    intervals = weights.get("intervals") or {}
    if kind:
        kinds = weights.get("uncertainty") or {}
        intervals = (kinds.get(kind) or {}).get("weights") or {} if "both" in kinds else {}
    found = next((intervals[task] for task in members if task in intervals), None)
    return (float(found["low"]), float(found["high"])) if found else None


def interval_kind(weights: Mapping[str, Any]) -> str:
    """What the intervals of λ hold; an older file has those of the questions."""
    return str(weights.get("interval_kind", "questions only")) if weights.get("intervals") else ""


def _deltas_of(run: Run) -> dict[str, tuple[float, float]]:
    if not run.results:
        return {}
    gains, errors = run.results.delta_i, run.results.delta_e
    methods = (method for method in run.methods if method != run.results.baseline)
    return {method: (gains[method], errors[method]) for method in methods if method in gains and method in errors}


def _results(
    deltas: Mapping[str, tuple[float, float]], runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure:
    names = sorted(deltas, key=lambda name: -deltas[name][0])
    figure = Figure(figsize=(6.4, 0.9 + 0.34 * len(names)))
    colours = [METHOD_COLOURS[0] if name == "VisATB" else "#a3a8ae" for name in names]
    sides: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(
        sides, (0, 1), ("ΔI % (higher is better)", "ΔE % (lower is more even)"), strict=True
    ):
        bars = axes.barh([plain(name) for name in names], [deltas[name][column] for name in names], color=colours)
        several = {name: runs[name][column] for name in names if len(runs[name][column]) > 1}
        axes.bar_label(bars, fmt="%.2f", padding=14 if several else 3, fontsize=8)
        for name, values in several.items():
            axes.plot(values, [names.index(name)] * len(values), "o", color=INK, markersize=3)
        axes.set_xlabel(title)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.margins(x=0.2)
    sides[0].invert_yaxis()
    return figure


def _losses(losses: Mapping[str, Mapping[str, Points]]) -> Figure:
    columns = min(4, len(losses))
    rows = -(-len(losses) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    tones = method_classes(list(dict.fromkeys(method for lines in losses.values() for method in lines)))
    for axes, (task, lines) in zip(panels, losses.items(), strict=False):
        for method, line in lines.items():
            tone = METHOD_COLOURS[int(tones[method].removeprefix("m"))]
            axes.plot(*zip(*line, strict=True), color=tone, linewidth=1.1, label=plain(method))
        axes.set_title(plain(task), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    for axes in panels[len(losses) :]:
        axes.set_visible(False)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    return figure
