"""The page's charts as inline SVG. Colours and text sizes come from report.css, so that they follow its themes.

Every chart is a picture with a name and a description for those who do not see it; its numbers stand in a table, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from visatb.report.tree import Tree

Points = Sequence[tuple[float, float]]
WIDTH = 420  # user units; about one phone's width, so that text stays readable there
GUTTER = 118
ROW = 30
NAME_LENGTH = 16
TONES = 7  # method colours in report.css


class _Chart:
    """An SVG element under construction; text is escaped by the serialiser."""

    def __init__(self, height: float, name: str, description: str, kind: str, width: float = WIDTH) -> None:
        self.height, self.width = height, width
        box = f"0 0 {width:g} {height:g}"
        self.root = ElementTree.Element("svg", {"viewBox": box, "role": "img", "class": f"chart {kind}"})
        self.root.set("aria-label", f"{name}. {description}")

    def add(
        self, tag: str, css: str, content: str | None = None, hint: str | None = None, **attributes: float | str
    ) -> None:
        """Append a shape or text with its attributes (`_` for `-`); `hint` shows on pointing at it."""
        values = {key.replace("_", "-"): _trim(value) for key, value in attributes.items()}
        element = ElementTree.SubElement(self.root, tag, {"class": css, **values})
        element.text = content and content.replace("-", "−") if css.startswith(("value", "tick")) else content
        if hint:
            ElementTree.SubElement(element, "title").text = hint

    def label(self, x: float, y: float, text: str, css: str = "") -> None:
        """Text whose anchor (start, middle, end) is one of the classes in `css`."""
        self.add("text", css, text, x=x, y=y)

    def name_of_row(self, y: float, name: str) -> None:
        self.add("text", "name end", _short(name), name if _short(name) != name else None, x=GUTTER - 8, y=y)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self.add("line", css, x1=x1, y1=y1, x2=x2, y2=y2)

    def seeds(self, values: Sequence[float], scale: _scale, y: float, what: str, css: str = "") -> None:
        """A small point for each run, where there are several."""
        for index, value in enumerate(values if len(values) > 1 else ()):
            hint = f"{what} {value:+.2f}% in run {index + 1}"
            self.add("circle", f"seed {css}".strip(), None, hint, cx=scale(value), cy=y, r=2.6)

    def markup(self) -> Markup:
        text = ElementTree.tostring(self.root, encoding="unicode", short_empty_elements=True)
        return Markup(text)


def contribution_map(units: Sequence[str], cells: Sequence[Sequence[Mapping[str, Any]]]) -> Markup:
    """Figure 3a without its numbers, for many units: a cell per pair (css, share, hint), coloured as in the table."""
    side, top = 13.0, 96.0
    height = top + side * len(units)
    label = f"{len(units)} rows give, as many columns receive; the table beneath has the figures"
    chart = _Chart(height, "Contributions between tasks", label, "map", GUTTER + side * (len(units) + 3))
    for index, name in enumerate(units):
        x, y = GUTTER + side * (index + 0.7), top - 6
        chart.add("text", "name start", _short(name), name, x=x, y=y, transform=f"rotate(-60 {x:.1f} {y:.1f})")
        chart.add("text", "name end", _short(name), name, x=GUTTER - 6, y=top + side * (index + 0.8))
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            position = {"x": GUTTER + side * column, "y": top + side * row, "width": side - 1, "height": side - 1}
            style = f"--share:{cell['share']}%"
            chart.add("rect", f"cell {cell['css']}", None, str(cell["hint"]), style=style, rx=2, **position)
    return chart.markup()


def difficulty_bars(values: Mapping[str, float | None]) -> Markup:
    """Figure 3b: one bar per unit, D from 0 (or below) to 1 (or above)."""
    known = [value for value in values.values() if value is not None]
    low, high = min([0.0, *known]), max([1.0, *known])
    scale = _scale(low, high, GUTTER, WIDTH - 52)
    label = ", ".join(f"{name} {plain(value, 2)}" for name, value in values.items())
    chart = _Chart(len(values) * ROW + 26, "Difficulty of each task", label, "difficulty")
    _grid(chart, scale, _ticks(low, high, 4), len(values) * ROW)
    for row, (name, value) in enumerate(values.items()):
        y = row * ROW
        chart.name_of_row(y + 19, name)
        if value is not None:
            left, right = sorted((scale(0), scale(value)))
            chart.add(
                "rect", "bar hard", None, f"{name}: D = {value:.4f}", x=left, y=y + 6, width=right - left, height=18
            )
        chart.label(scale(max(value or 0, 0)) + 6, y + 19, plain(value, 3), "value start")
    return chart.markup()


def task_tree(tree: Tree, groups: Mapping[str, Sequence[str]]) -> Markup:
    """The tree that tasks were grouped by: a row per task, joins to the right by their distance, the cut dashed."""
    high = max(join.height for join in tree.joins)
    scale = _scale(0, high, GUTTER, WIDTH - 12)
    label = "; ".join(", ".join(members) for members in groups.values())
    chart = _Chart(len(tree.leaves) * ROW + 26, "Tree of tasks, cut into groups", label, "tree")
    _grid(chart, scale, _ticks(0, high, 4), len(tree.leaves) * ROW)
    for row, name in enumerate(tree.leaves):
        chart.name_of_row(row * ROW + 19, name)
    for join in tree.joins:
        x, css = scale(join.height), "branch inside" if join.inside else "branch"
        ends = [(scale(height), row * ROW + 15) for height, row in (join.left, join.right)]
        for end, y in ends:
            chart.line(end, y, x, y, css)
        chart.line(x, ends[0][1], x, ends[1][1], css)
    chart.line(scale(tree.cut), 0, scale(tree.cut), len(tree.leaves) * ROW, "one")
    return chart.markup()


def weight_bars(
    parts: Mapping[str, Sequence[tuple[str, float]]],
    intervals: Mapping[str, tuple[float, float]],
    inner: Mapping[str, tuple[float, float]],
) -> Markup:
    """λ of each unit as the sum of its components (class, share × value); a line stands at 1.

    `intervals` are whiskers with ends; `inner`, of the questions alone where the others hold training, thick lines.
    """
    totals = {name: sum(value for _, value in pieces) for name, pieces in parts.items()}
    high = max([1.5, *totals.values(), *(high for _, high in intervals.values())]) * 1.02
    scale = _scale(0, high, GUTTER, WIDTH - 48)
    label = ", ".join(f"{name} {total:.2f}" for name, total in totals.items())
    chart = _Chart(len(parts) * ROW + 26, "Weight of each task and its three components", label, "weights")
    _grid(chart, scale, _ticks(0, high, 4), len(parts) * ROW)
    for row, (name, pieces) in enumerate(parts.items()):
        y, done = row * ROW, 0.0
        chart.name_of_row(y + 19, name)
        for css, value in pieces:
            left, right = scale(done), scale(done + value)
            hint = f"{name}: {value:.4f} of {totals[name]:.4f}"
            chart.add("rect", f"bar {css}", None, hint, x=left, y=y + 6, width=max(right - left - 1, 0), height=18)
            done += value
        if name in intervals:
            low, top = (scale(value) for value in intervals[name])
            chart.line(low, y + 15, top, y + 15, "whisker")
            chart.line(low, y + 11, low, y + 19, "whisker")
            chart.line(top, y + 11, top, y + 19, "whisker")
        if name in inner:
            low, top = (scale(value) for value in inner[name])
            chart.line(low, y + 15, top, y + 15, "whisker inner")
        chart.label(WIDTH - 2, y + 19, f"{totals[name]:.3f}", "value end")
    chart.line(scale(1), 0, scale(1), len(parts) * ROW, "one")
    return chart.markup()


def delta_bars(
    gains: Mapping[str, float],
    errors: Mapping[str, float],
    highlight: str,
    runs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> Markup:
    """ΔI% (signed) and ΔE% of each method, side by side; a point for each run where there are several (`runs`)."""
    names = sorted(gains, key=lambda name: -gains[name])
    middle = GUTTER + (WIDTH - GUTTER) * 0.58
    every = [[*of.values(), *(v for pair in runs.values() for v in pair[k])] for k, of in enumerate((gains, errors))]
    left = _scale(min([0.0, *every[0]]), max([0.1, *every[0]]), GUTTER, middle - 50)
    right = _scale(0, max([0.1, *every[1]]), middle + 8, WIDTH - 42)
    label = ", ".join(f"{name}: ΔI {gains[name]:+.2f}%, ΔE {errors.get(name, 0):.2f}%" for name in names)
    chart = _Chart(len(names) * ROW + 24, "Average change and average loss of each method", label, "deltas")
    chart.label(GUTTER, 13, "ΔI % ↑", "axis start")
    chart.label(middle + 8, 13, "ΔE % ↓", "axis start")
    for row, name in enumerate(names):
        y = row * ROW + 22
        css = "bar mine" if name == highlight else "bar other"
        chart.name_of_row(y + 18, name)
        a, b = sorted((left(0), left(gains[name])))
        hint = f"{name}: ΔI {gains[name]:+.2f}%"
        chart.add("rect", css, None, hint, x=a, y=y + 5, width=max(b - a, 1), height=18)
        points = runs.get(name, ((), ()))
        chart.label(max([b, *map(left, points[0])]) + 6, y + 18, f"{gains[name]:+.2f}", "value start")
        chart.seeds(points[0], left, y + 14, f"{name}: ΔI")
        if name in errors:
            length = right(errors[name]) - right(0)
            hint = f"{name}: ΔE {errors[name]:.2f}%"
            chart.add("rect", f"{css} loss", None, hint, x=right(0), y=y + 5, width=max(length, 1), height=18)
            end = max([right(errors[name]), *map(right, points[1])])
            chart.label(end + 6, y + 18, f"{errors[name]:.2f}", "value start")
            chart.seeds(points[1], right, y + 14, f"{name}: ΔE")
    chart.line(left(0), 20, left(0), chart.height, "zero")
    chart.line(right(0), 20, right(0), chart.height, "zero")
    return chart.markup()


def change_dots(
    tasks: Sequence[str],
    changes: Mapping[str, Mapping[str, float]],
    css_of: Mapping[str, str],
    whiskers: Mapping[str, tuple[float, float]],
    runs: Mapping[str, Mapping[str, Sequence[float]]],
) -> Markup:
    """I_i% of each method on each task: a row per task, a dot per method (the last lies on top, with `whiskers`).

    `runs`, method → task → I_i% of each run: small points, where there are several.
    """
    every = [value for row in changes.values() for value in row.values()]
    every += [value for row in runs.values() for points in row.values() for value in points]
    every += [end for interval in whiskers.values() for end in interval]
    low, high = min([0.0, *every]), max([0.0, *every])
    room = (high - low) * 0.06 or 1
    scale = _scale(low - room, high + room, GUTTER, WIDTH - 12)
    label = "; ".join(
        f"{task}: " + ", ".join(f"{method} {row[task]:+.1f}%" for method, row in changes.items() if task in row)
        for task in tasks
    )
    chart = _Chart(len(tasks) * ROW + 26, "Change on each task in percent of the baseline", label, "changes")
    _grid(chart, scale, _ticks(low - room, high + room, 5), len(tasks) * ROW, "%")
    for row, task in enumerate(tasks):
        y = row * ROW + 15
        chart.name_of_row(y + 4, task)
        chart.line(GUTTER, y, WIDTH - 12, y, "track")
        if task in whiskers:
            low, high = whiskers[task]
            chart.line(scale(low), y, scale(high), y, "whisker")
        for method, figures in changes.items():
            chart.seeds(runs.get(method, {}).get(task, ()), scale, y, f"{task}, {method}:", css_of[method])
            if task in figures:
                hint = f"{task}, {method}: {figures[task]:+.2f}%"
                chart.add("circle", f"dot {css_of[method]}", None, hint, cx=scale(figures[task]), cy=y, r=5.5)
    chart.line(scale(0), 0, scale(0), len(tasks) * ROW, "zero")
    return chart.markup()


def step_lines(name: str, lines: Mapping[str, Points], css_of: Mapping[str, str]) -> Markup:
    """A figure such as the training loss on a task by optimizer step, a line per model."""
    width, height = 300.0, 170.0
    points = [point for line in lines.values() for point in line]
    last, top = max(x for x, _ in points), max(y for _, y in points)
    bottom = min(y for _, y in points)
    x = _scale(0, last or 1, 38, width - 8)
    y = _scale(bottom - (top - bottom) * 0.05, top or 1, height - 24, 8)
    label = ", ".join(f"{method} ends at {line[-1][1]:.4g}" for method, line in lines.items())
    chart = _Chart(height, name, label, "loss", width)
    for value in _ticks(bottom, top, 3):
        chart.line(38, y(value), width - 8, y(value), "grid")
        chart.label(33, y(value) + 3.5, f"{value:.3g}", "tick end")
    for value in _ticks(0, last, 3):
        chart.label(x(value), height - 8, f"{value:,.0f}", "tick middle")
    for method, line in lines.items():
        path = " ".join(f"{_trim(x(step))},{_trim(y(loss))}" for step, loss in line)
        chart.add("polyline", f"line {css_of[method]}", None, method, points=path)
    return chart.markup()


def method_classes(methods: Sequence[str]) -> dict[str, str]:
    """Each method's colour class: VisATB has its own, the others take the rest in turn."""
    others = [name for name in methods if name != "VisATB"]
    return {"VisATB": "m0"} | {name: f"m{1 + index % (TONES - 1)}" for index, name in enumerate(others)}


def thin(points: Points, most: int = 120) -> list[tuple[float, float]]:
    """At most `most` points: means over runs of neighbours, and the first and the last as they are."""
    if len(points) <= most:
        return list(points)
    edges = [round(k * (len(points) - 2) / (most - 2)) + 1 for k in range(most - 1)]
    runs = [points[start:stop] for start, stop in itertools.pairwise(edges)]
    means = [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
    return [points[0], *means, points[-1]]


class _scale:  # noqa: N801  (used as a function)
    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.span, self.start, self.length = low, (high - low) or 1.0, start, stop - start

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / self.span * self.length


def _grid(chart: _Chart, scale: _scale, ticks: Sequence[float], height: float, unit: str = "") -> None:
    for value in ticks:
        chart.line(scale(value), 0, scale(value), height, "grid")
        chart.label(scale(value), height + 17, f"{value:g}{unit}", "tick middle")


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    rough = (high - low) / count
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def plain(value: float | None, digits: int = 4) -> str:
    """A number as the page shows it, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def _trim(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
