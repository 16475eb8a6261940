"""The page: well formed, complete, without network, safe against what models say, and honest about what is missing."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.report.academic import HOSTILE, PAPER, TASKS, begun
from tests.report.document import Document, embedded
from visatb.report import build
from visatb.report.load import load
from visatb.report.measured import STRONG, matrix
from visatb.report.outcome import curves, losses
from visatb.report.resources import asset, palette
from visatb.report.svg import thin
from visatb.report.view import script_json
from visatb.workdir.layout import Layout
from weighting_visatb import build_problem, weigh


@pytest.fixture(scope="module")
def document(page: str) -> Document:
    return Document(page)


def test_well_formed_and_accessible(document: Document) -> None:
    tags = Counter(tag for tag, _ in document.elements)
    assert tags["h1"] == tags["main"] == tags["nav"] == 1
    assert tags["table"] == tags["caption"] > 5
    names = [values["id"] for _, values in document.elements if "id" in values]
    assert len(names) == len(set(names))
    for tag, values in document.elements:
        if tag == "svg":
            assert values.get("role") == "img", values
            assert values.get("aria-label"), values
        if tag == "th":
            assert values.get("scope"), values
        if tag == "label" and "for" in values:
            assert values["for"] in names
        if tag == "a" and (values["href"] or "").startswith("#"):
            assert (values["href"] or "")[1:] in names


def test_no_network(document: Document, page: str) -> None:
    policy = next(v["content"] for t, v in document.elements if t == "meta" and "http-equiv" in v) or ""
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]+';", policy)
    for tag, values in document.elements:
        for key in ("src", "href", "action", "srcset", "xlink:href"):
            target = values.get(key) or ""
            assert not re.match(r"(?:\w+:)?//|https?:", target), (tag, target)
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not any(key.startswith("on") for key in values), values
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style
    assert "url(" not in style.group(1)
    assert "@import" not in style.group(1)


def test_weights_of_table_five(document: Document) -> None:
    table = PAPER["table5"]
    rows = [row for row in document.rows if len(row) == 10 and row[0] in TASKS]
    assert [row[0] for row in rows] == TASKS
    for k, row in enumerate(rows):
        shown = [float(cell) for cell in row[1:8]]
        difficulty = 1 - table["one_minus_d"][k]
        paper = [table["c_out"][k], table["c_in"][k], difficulty]
        paper += [table[key][k] for key in ("out", "in", "difficulty", "weights")]
        assert shown == pytest.approx(paper, abs=1.5e-4)
        low, high = map(float, row[8].split(" – "))
        assert low < shown[-1] < high
    assert document.row("ShareGPT")[2] == "1.0000"


def test_contributions_have_signs(document: Document, academic: Path) -> None:
    weights = json.loads((academic / "weights.json").read_text())
    rows = [row for row in document.rows if len(row) == 9 and row[0] in TASKS][: len(TASKS)]
    shown = [[float(cell.replace("−", "-")) for cell in row[1:8]] for row in rows]
    assert shown == [pytest.approx(row, abs=6e-4) for row in weights["contributions"]]
    cells = [values for tag, values in document.elements if tag == "td" and "title" in values]
    for values, number in zip(cells, chain(*weights["contributions"]), strict=True):
        css = (values["class"] or "").split()
        assert css[0] == ("own" if number == pytest.approx(1) else "pos" if number >= 0 else "neg")
    assert any((values["class"] or "").startswith("neg") for values in cells)


def test_the_validation_matrix_has_one_order(bare: Path) -> None:
    """Score files come in the order of their names: rows and columns are shown in that of the tasks."""
    content = json.loads((bare / "matrix.json").read_text())
    content["plus_mini"] = dict(sorted(content["plus_mini"].items(), reverse=True))
    (bare / "matrix.json").write_text(json.dumps(content))
    shown = matrix(load(bare))
    assert shown
    assert shown["tasks"][: len(TASKS)] == TASKS
    assert [row["name"] for row in shown["rows"]] == ["mini", *(f"plus_mini:{task}" for task in TASKS)]
    own = [row["cells"][place][0] for place, row in enumerate(shown["rows"][1:])]
    assert own == [f"{content['plus_mini'][task][task]:.4f}" for task in TASKS]


@pytest.fixture
def thirty(tmp_path: Path) -> Path:
    """A work folder of 30 tasks and three methods."""
    tasks = [f"task{place:02}_of_satellites" for place in range(30)]
    rng = np.random.default_rng(4)
    rows = {i: {j: 0.6 if i == j else round(0.3 + 0.2 * rng.random(), 3) for j in tasks} for i in tasks}
    content = {"tasks": tasks, "mini": dict.fromkeys(tasks, 0.4), "plus_mini": rows}
    begun(tmp_path, "many")
    (tmp_path / "weights.json").write_text(json.dumps(weigh(build_problem(content), bootstrap=0)))
    (tmp_path / "matrix.json").write_text(json.dumps(content))
    methods = {m: {task: [0.5 + gain] for task in tasks} for m, gain in (("EW", 0.0), ("VisATB", 0.1), ("TLA", -0.1))}
    results = {
        "baseline": "EW",
        "tasks": tasks,
        "metrics": {task: [{"metric": "em", "higher_is_better": True}] for task in tasks},
        "methods": methods,
        "delta_i": {"EW": 0.0, "VisATB": 20.0, "TLA": -20.0},
        "delta_e": {"EW": 0.0, "VisATB": 0.0, "TLA": 20.0},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


@pytest.mark.usefixtures("no_figures")
def test_thirty_tasks_fit_the_page(thirty: Path) -> None:
    """A map of all pairs before their table, tasks as the rows of the results, and no list of 30 names at the top."""
    text = build(thirty).read_text(encoding="utf-8")
    document = Document(text)
    plan = re.search(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*class="chart map".*?</svg>', text, re.S)
    assert plan
    assert plan.group(0).count('class="cell') == 30 * 30
    assert float(plan.group(1)) < 720  # units: about the page's pixels
    first = next(row for row in document.rows if row[:2] == ["Task", "EW"])
    assert first == ["Task", "EW", "VisATB", "TLA"]
    assert ["task07_of_satellitesEM % ↑", "50.00", "60.00", "40.00"] in document.rows
    assert ["ΔI% ↑", "–", "20.00", "-20.00"] in document.rows
    top = text[text.index("<h1>") : text.index('<dl class="facts">')]
    assert top.count("_of_satellites") <= 8
    assert "and 27 more" in top


def test_tables_can_be_downloaded(document: Document, academic: Path) -> None:
    """CSV with all digits, in the page itself; read back by Python's own reader."""
    links = {v["download"]: v["href"] or "" for tag, v in document.elements if tag == "a" and "download" in v}
    assert set(links) == {f"{name}.csv" for name in ("matrix", "contributions", "weights", "results")}
    tables = {}
    for name, link in links.items():
        kind, _, body = link.partition(",")
        assert kind == "data:text/csv;charset=utf-8"
        tables[name] = list(csv.reader(io.StringIO(unquote(body))))
    weights, content = (json.loads((academic / f"{name}.json").read_text()) for name in ("weights", "matrix"))
    square = tables["contributions.csv"]
    assert square[0][1:] == TASKS
    assert [[float(cell) for cell in row[1:]] for row in square[1:]] == weights["contributions"]
    rows = {row[0]: row for row in tables["weights.csv"]}
    assert {task: float(rows[task][8]) for task in weights["weights"]} == weights["weights"]
    assert float(rows["GQA"][9]) == weights["intervals"]["GQA"]["low"]
    assert rows["ShareGPT"][2:8] == [""] * 6
    cells = {(model, task): float(value) for model, task, value, _ in tables["matrix.csv"][1:]}
    assert cells["plus_mini:GQA", "VQAv2"] == content["plus_mini"]["GQA"]["VQAv2"]
    assert ["VisATB", "", "delta_i"] in [row[:3] for row in tables["results.csv"]]


def linear(colour: str) -> Any:
    """A CSS colour in linear RGB."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = np.array([int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def mixed(a: str, b: str, share: float) -> Any:
    """CSS color-mix(in oklab, a share, b) in linear RGB (B. Ottosson's matrices)."""
    to_cone = np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    )  # fmt: skip
    to_lab = np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    )  # fmt: skip
    first, second = (to_lab @ np.cbrt(to_cone @ linear(colour)) for colour in (a, b))
    return np.linalg.solve(to_cone, np.linalg.solve(to_lab, share * first + (1 - share) * second) ** 3)


def contrast(a: Any, b: Any) -> float:
    """WCAG's contrast of two colours in linear RGB."""
    low, high = sorted(float(np.dot([0.2126, 0.7152, 0.0722], colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])  # light, dark
def test_every_cell_can_be_read(theme: int) -> None:
    """A text of contrast 4.5 or more on every colour that a cell can have, in both themes (WCAG AA)."""
    colours = {name: pair[theme] for name, pair in palette().items()}
    for share in range(101):
        text = linear(colours["on-strong" if share > STRONG else "on-weak"])
        for sign in ("pos", "neg"):
            assert contrast(text, mixed(colours[sign], colours["sunken"], share / 100)) >= 4.5, (sign, share)
    chip = int(re.search(r"const CHIP = (\d+);", asset("report.js")).group(1))  # type: ignore[union-attr]
    for share in range(chip + 1):
        assert contrast(linear(colours["ink"]), mixed(colours["good"], colours["sunken"], share / 100)) >= 4.5, share


def test_results_of_table_three(document: Document) -> None:
    for method, paper in PAPER["table3"]["rows"].items():
        row = next(row for row in document.rows if row and row[0] == method and len(row) == 10)
        figures = [float(re.split("±", cell)[0]) for cell in row[1:8]]
        assert figures == pytest.approx(paper, abs=1e-9), method
    assert document.row("VisATB")[-2:] == ["11.29", "0.15"]
    assert document.row("IGBv1")[-2:] == ["1.17", "1.13"]
    assert document.row("STL")[-2:] == ["–", "–"]


def test_best_and_second_as_in_the_paper(page: str) -> None:
    row = re.search(r'<tr class="mine">.*?</tr>', page, re.S)
    assert row
    # Table 3, VisATB: first on ShareGPT4V, Ref-bbox and ΔI; second on Ref-caption, ChartQA and ΔE.
    marks = re.findall(r'<td[^>]*><span class="(\w*)">', row.group(0))
    assert marks == ["best", "second", "", "", "second", "", "best", "best", "second"]


def test_headline_says_how_sure(page: str) -> None:
    title = re.search(r"<h1>(.*?)</h1>", page)
    assert title
    assert title.group(1) == (
        "One run of each method, so no verdict: here ΔI of VisATB less that of EW is +2.55 points"  # of exact figures
    )
    assert "+11.29% against +8.75%, a difference of +2.55 points (95% interval, questions only: +" in page
    assert "0.15% against 0.10%, a difference of +0.05 points (95% interval, questions only: −" in page
    assert "counted as exact in them: VQAv2" in page
    assert "no standard errors, so not known on VQAv2" in page


def test_cost(document: Document) -> None:
    final, minis = document.row("VisATB"), [row for row in document.rows if row and row[0].startswith("plus_mini:")]
    cost = next(row for row in document.rows if row and row[0] == "VisATB" and "473,600" in row)
    assert cost[1:5] == ["473,600", "3,700", "10 h 01 min", "30 min 00 s"]
    assert final != cost
    assert any("80,384" in row for row in minis)
    # R_large + N·R_mini = 1 + 7/32
    assert "1.23×" in "".join(document.words)
    assert "1.22× in samples" in "".join(document.words)


def test_what_models_say_is_only_text(page: str) -> None:
    assert HOSTILE not in page
    assert page.count("</script>") == 3 == page.count("<script")
    assert "onerror=" in page  # it is there …
    said = [
        answer[0]
        for part in embedded(page, "browser-data")["pages"]
        for question in part["questions"]
        for model, answer in question["answers"].items()
        if model == "VisATB"
    ]
    assert HOSTILE in said  # … as data
    data = page[page.index('id="browser-data"') :]
    data = data[data.index(">") + 1 : data.index("</script>")]
    assert "<" not in data
    assert json.loads(script_json(["</script><!--", "\u2028", "&amp;"])) == ["</script><!--", "\u2028", "&amp;"]


def test_hostile_names_everywhere(tmp_path: Path) -> None:
    names = ['<img src=x onerror="1">', "a$b$ \\frac{", "`|*_ {{ 7*7 }}", "日本"]
    matrix = {
        "tasks": names,
        "mini": dict.fromkeys(names, 0.2),
        "plus_mini": {i: {j: 0.6 if i == j else 0.25 for j in names} for i in names},
    }
    begun(tmp_path, "</title><script>x</script>")
    (tmp_path / "weights.json").write_text(json.dumps(weigh(build_problem(matrix), bootstrap=0)))
    (tmp_path / "matrix.json").write_text(json.dumps(matrix))
    results = {
        "baseline": "EW",
        "tasks": names,
        "metrics": {name: [{"metric": "<b>em</b>", "higher_is_better": False}] for name in names},
        "methods": {m: {name: [0.5] for name in names} for m in ("EW", "VisATB", "<u>odd</u>")},
        "delta_i": {"EW": 0.0, "VisATB": 0.0, "<u>odd</u>": 0.0},
        "delta_e": {"EW": 0.0, "VisATB": 0.0, "<u>odd</u>": 0.0},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    path = build(tmp_path)
    text = path.read_text(encoding="utf-8")
    document = Document(text)
    assert not {"img", "u", "frac"} & {tag for tag, _ in document.elements}
    assert text.count("<script") == 2  # what-if's data and the page's own
    assert "{{ 7*7 }}" in text
    card = (path.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert '\n| \\<img src=x onerror="1"\\>' in card
    assert "</title><script>" not in card.partition("```yaml")[0]


def test_files_beside_the_page(index: Path) -> None:
    figures = index.parent / "figures"
    names = {"contributions", "difficulties", "weights", "results", "training_loss"}
    assert {path.name for path in figures.iterdir()} == {f"{n}.{s}" for n in names for s in ("pdf", "png")}
    for name in names:
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        with Image.open(figures / f"{name}.png") as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors() or []) > 20
    linked = re.findall(r'href="(figures/[\w.]+)"', index.read_text(encoding="utf-8"))
    assert all((index.parent / name).is_file() for name in linked)
    assert len(linked) == 10


def test_losses(academic: Path) -> None:
    lines = losses(load(academic))
    assert list(lines) == [*TASKS, "ShareGPT"]
    assert set(lines["GQA"]) == set(PAPER["table3"]["rows"])
    assert "STL" not in lines["ShareGPT"]
    assert max(x for x, _ in lines["GQA"]["STL"]) == 520
    assert all(len(line) <= 120 for task in lines.values() for line in task.values())


def test_curves_of_proxies_and_methods(bare: Path) -> None:
    """Loss, gradient norm, learning rate as logged, the proxies' in a part of their own; without what is no number."""
    logged = [{"step": s, "loss": 2.0 / s, "grad_norm": 0.5, "learning_rate": 1e-5 * s} for s in (1, 2, 4)]
    broken = [*logged, {"step": 5, "loss": float("nan"), "grad_norm": float("inf")}, {"train_runtime": 3.0}]
    for model, history in {"plus_mini:GQA": logged, "mini": broken, "EW": logged}.items():
        state = Layout(bare).model(model) / "trainer_state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"log_history": history}))
    run = load(bare)
    methods, proxies = curves(run)
    assert (methods["title"], proxies["title"]) == ("the methods' runs", "the proxies")
    assert [name for _, name in proxies["legend"]] == ["mini", "plus_mini:GQA"]
    assert [label for label, _ in proxies["panels"]] == ["Loss", "Gradient norm", "Learning rate"]
    for label, chart in proxies["panels"]:
        drawn = re.findall(r'<polyline[^>]*points="([^"]*)"', chart)
        assert [len(points.split()) for points in drawn] == [3, 3], label
    assert "mini ends at 0.5" in proxies["panels"][0][1]
    assert "ends at 4e-05" in proxies["panels"][2][1]
    assert curves(replace(run, histories={})) == []


def test_thin_keeps_means_and_ends() -> None:
    points = [(float(x), float(x % 7)) for x in range(1000)]
    few = thin(points, 50)
    assert len(few) == 50
    assert few[0] == points[0]
    assert few[-1] == points[-1]
    assert [x for x, _ in few] == sorted(x for x, _ in few)
    assert sum(y for _, y in few) / 50 == pytest.approx(3, abs=0.2)
    assert thin(points[:50], 50) == points[:50]
