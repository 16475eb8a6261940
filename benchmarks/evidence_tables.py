"""evidence.json, and the tables and pictures of docs/evidence.md, from work folders of many seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import t as student

from benchmarks.evidence_seeds import Seed, comparisons, coverage, find
from benchmarks.record import RESULTS, machine
from eval.files import read_json
from visatb.report.figures import METHOD_COLOURS, STYLE
from visatb.workdir.results_file import Results
from visatb.workdir.verdict import Comparison

DOCS = Path(__file__).parents[1] / "docs"
PAGE, IMAGES, README = DOCS / "evidence.md", DOCS / "images", DOCS.parent / "README.md"
BEGIN, END = "<!-- made by benchmarks.evidence: begin -->", "<!-- made by benchmarks.evidence: end -->"
COMMANDS = [
    "python -m benchmarks.evidence run FOLDER --worlds WORLD --seeds SEED [SEED ...]",
    "python -m benchmarks.evidence tables FOLDER",
]
NULL = ("null",)  # worlds whose λ and ΔI are known, and whose seeds have questions of their own
FEWEST = 3  # seeds from which on means have intervals
NEAR = 0.05
# World → the world whose methods its own stand beside, and under which names.
JOINED = {
    "tiny_shrunken": ("tiny", {"VisATB": "VisATB, shrunken λ"}),
    "tiny_equal_steps": ("tiny", {"STL": "STL, equal steps"}),
    "tiny_t1": ("tiny", {"VisATB": "VisATB, T = 1"}),
    "tiny_alpha": ("tiny", {"VisATB": "VisATB, α = ½, ¼, ¼"}),
    "tiny_sampling": ("tiny", {"VisATB": "VisATB, λ by sampling"}),
}


def write_tables(folders: Sequence[Path]) -> Path:
    """Write the three from the complete work folders in `folders`; the path of evidence.json."""
    found = find(folders)
    if not any(world not in JOINED for world in found):
        raise SystemExit(f"no complete work folder WORLD-SEED (with all.ok in it) in {', '.join(map(str, folders))}")
    worlds = {world: entry_of(world, seeds, found) for world, seeds in found.items() if world not in JOINED}
    content = {**_made_with(found), "commands": COMMANDS, "worlds": worlds}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "evidence.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    pictures = {world: draw(world, entry) for world, entry in worlds.items()}
    _place(PAGE, f"\n\n{page(content, pictures)}\n\n")
    if said := sentences(worlds.get("tiny", {})):
        _place(README, f" {said} ")
    return path


def _place(path: Path, text: str) -> None:
    """Replace what stands between a page's two marks; ValueError where it lacks them."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{path}: lacks {BEGIN} and {END}, between which the figures go")
    path.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")


def sentences(tiny: Mapping[str, Any]) -> str:
    """What the evidence is, in two sentences for the README; empty while there are too few seeds for a verdict."""
    if not tiny.get("comparisons"):
        return ""
    c, full = tiny["comparisons"][0], tiny["coverage"]["in_full"]
    verdict = {"ahead": "VisATB is ahead", "behind": "VisATB is behind"}.get(c["verdict"], "the two are not told apart")
    ends = f"95% interval {signed(c['low'])} to {signed(c['high'])}"
    said = (
        f"Over {len(tiny['seeds'])} seeds of the [tiny experiment](docs/tiny.md), ΔI of {c['method']} less that of "
        f"{c['other']} is {signed(c['delta_i'])} points ({ends}): {verdict}."
    )
    hows = {
        "one training of each": "every proxy was trained once",
        "mini × 3": "the mini model was trained three times",
        "all × 2": "every proxy was trained twice",
    }
    known = [(full[name], how) for name, how in hows.items() if full[name]["of"]]
    held = [f"in {one['held']} of {one['of']} cases when {how}" for one, how in known]
    return (
        f"{said} The 95% interval of one run's λ held the mean λ of the other seeds {', '.join(held)} "
        "([all figures](docs/evidence.md))."
    )


# ---------------------------------------------------------------------------------------------- evidence.json


def entry_of(world: str, seeds: Sequence[Seed], found: Mapping[str, Sequence[Seed]]) -> dict[str, Any]:
    """What evidence.json says of a world, with the methods of those worlds that stand beside it."""
    baseline = seeds[0].results.baseline
    methods = {name: _by_seed([seed.results for seed in seeds], name) for name in seeds[0].results.methods}
    for other, (place, names) in JOINED.items():
        if place == world and other in found:
            methods |= {new: _beside(seeds, found[other], old) for old, new in names.items()}
    compared = comparisons(seeds, same_questions=world not in NULL) if len(seeds) >= FEWEST else []
    return {
        "seeds": [seed.number for seed in seeds],
        "baseline": baseline,
        "methods": methods,
        "comparisons": [_comparison(one) for one in compared],
        "weights": {str(seed.number): seed.weights["weights"] for seed in seeds},
        "shrunken": {str(seed.number): seed.weights["shrinkage"]["weights"]["auto"] for seed in seeds},
        "intervals": {seed.number: _intervals(seed) for seed in seeds} if world in NULL else {},
        "coverage": {} if world in NULL else _coverages(seeds),
    }


def _by_seed(results: Sequence[Results], method: str) -> dict[str, Any]:
    """ΔI, ΔE and I_i of a method in each seed's first run, None where a figure is missing."""
    deltas = [of_seed.deltas_by_run(method) for of_seed in results]
    changes = [of_seed.changes_by_run(method) for of_seed in results]
    return {
        "delta_i": [gains[0] if gains else None for gains, _ in deltas],
        "delta_e": [errors[0] if errors else None for _, errors in deltas],
        "tasks": {task: [of.get(task, [None])[0] for of in changes] for task in results[0].tasks},
    }


def _beside(seeds: Sequence[Seed], others: Sequence[Seed], method: str) -> dict[str, Any]:
    """A method of another world against the baselines of the same seeds here."""
    there = {other.number: other.results for other in others}
    rows = []
    for seed in seeds:
        mine = there.get(seed.number)
        methods = {**seed.results.methods, "other": mine.methods.get(method, {}) if mine else {}}
        runs = {**seed.results.runs, "other": mine.runs.get(method, {}) if mine else {}}
        rows.append(replace(seed.results, methods=methods, runs=runs))
    return _by_seed(rows, "other")


def _comparison(c: Comparison) -> dict[str, Any]:
    low, high = c.gain.interval or (None, None)
    return {
        "method": c.method, "other": c.other, "delta_i": c.gain.value, "low": low, "high": high,
        "delta_e": c.error.value, "p": c.gain.p, "p_holm": c.adjusted, "verdict": c.verdict, "intervals": c.kind,
        "between_seeds": c.spread, "wins": sum(value > 0 for value in c.gain.runs),
    }  # fmt: skip


def _intervals(seed: Seed) -> dict[str, Any]:
    return {"kind": seed.weights["interval_kind"], "weights": seed.weights["intervals"]}


def _coverages(seeds: Sequence[Seed]) -> dict[str, Any]:
    """`questions` and `both` as shares (the latter with three minis), and each in full."""
    kinds = {
        "one training of each": (1, ()),
        "mini × 3": (3, ("mini",)),
        "all × 2": (2, ("mini", "plus_mini")),
    }
    full = {name: coverage(seeds, repeats, models) for name, (repeats, models) in kinds.items()}
    return {"questions": full["one training of each"]["share"], "both": full["mini × 3"]["share"], "in_full": full}


def _made_with(found: Mapping[str, Sequence[Seed]]) -> dict[str, Any]:
    """The machine of the tables, and versions and systems of the trainings themselves."""
    paths = (seed.layout.root / "models" for seeds in found.values() for seed in seeds)
    cards = [read_json(card) for path in paths for card in sorted(path.glob("*/run_card.json"))]
    versions: dict[str, set[str]] = {}
    for card in cards:
        for name, version in card["versions"].items():
            versions.setdefault(name, set()).add(str(version))
    commits = sorted({card["git"]["commit"][:12] for card in cards if card.get("git", {}).get("commit")})
    return {
        "machine": machine(),
        "versions": {name: ", ".join(sorted(known)) for name, known in sorted(versions.items())},
        "commits": commits,
    }


# ---------------------------------------------------------------------------------------------- docs/evidence.md


def page(content: Mapping[str, Any], pictures: Mapping[str, Sequence[Path]]) -> str:
    """All tables as Markdown."""
    made = content["machine"]
    versions = ", ".join(f"{name} {content['versions'][name]}" for name in ("torch", "transformers", "numpy"))
    parts = [
        f"Made on {made['cores']} cores of {made['cpu']} with {versions}; commits of the trainings: "
        f"{', '.join(content['commits'])}. All figures: [evidence.json](../benchmarks/results/evidence.json)."
    ]
    for world, entry in content["worlds"].items():
        count = len(entry["seeds"])
        parts.append(f"### {world}: {count} {'seed' if count == 1 else 'seeds'} ({_some(entry['seeds'])})")
        parts += [f"![{path.stem}](images/{path.name})" for path in pictures[world]]
        parts += [methods_table(entry), comparisons_table(entry), weights_table(entry)]
        parts += [null_table(entry) if world in NULL else coverage_table(entry)]
    return "\n\n".join(part for part in parts if part)


def _some(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 else ", ".join(map(str, seeds))


def methods_table(entry: Mapping[str, Any]) -> str:
    """ΔI and ΔE of each method: mean, interval over the seeds, worst, and each seed."""
    rows = []
    for name, figures in entry["methods"].items():
        if name == entry["baseline"]:
            continue
        gains = [value for value in figures["delta_i"] if value is not None]
        errors = [value for value in figures["delta_e"] if value is not None]
        if gains:
            each = " ".join("–" if value is None else signed(value, 1) for value in figures["delta_i"])
            ends = interval(gains)
            rows.append([name, signed(np.mean(gains)), ends, signed(min(gains)), f"{np.mean(errors):.2f}", each])
    head = ["Method", "ΔI%, mean", "95%, over seeds", "worst", "ΔE%, mean", "ΔI% of each seed"]
    return f"ΔI and ΔE against {entry['baseline']}:\n\n{table(head, rows)}" if rows else ""


def comparisons_table(entry: Mapping[str, Any]) -> str:
    """The product's own verdicts, with the seeds as runs."""
    rows = [
        [
            f"{c['method']} against {c['other']}", signed(c["delta_i"]), f"{signed(c['low'])} to {signed(c['high'])}",
            f"{c['wins']} of {len(entry['seeds'])}", "by itself" if c["p_holm"] is None else f"{c['p_holm']:.3f}",
            c["verdict"],
        ]
        for c in entry["comparisons"]
    ]  # fmt: skip
    if not rows:
        return ""
    kind = entry["comparisons"][0]["intervals"]
    said = f"Methods against each other, seed by seed ({kind} drawn anew; p adjusted by Holm):"
    head = ["Methods", "ΔI, difference", "95%", "seeds ahead", "p (Holm)", "verdict"]
    return f"{said}\n\n{table(head, rows)}"


def weights_table(entry: Mapping[str, Any]) -> str:
    """λ of each seed, plain; mean and standard deviation plain and shrunken."""
    tasks = list(next(iter(entry["weights"].values())))
    rows = [[seed, *(f"{weights[task]:.2f}" for task in tasks)] for seed, weights in entry["weights"].items()]
    if len(rows) > 1:
        for name, key in (("plain", "weights"), ("shrunken", "shrunken")):
            of = {task: [weights[task] for weights in entry[key].values()] for task in tasks}
            rows.append([f"**mean, {name}**", *(f"{np.mean(of[task]):.2f}" for task in tasks)])
            rows.append([f"standard deviation, {name}", *(f"{np.std(of[task], ddof=1):.2f}" for task in tasks)])
    return f"λ of each seed:\n\n{table(['Seed', *tasks], rows)}"


def coverage_table(entry: Mapping[str, Any]) -> str:
    """How often intervals of λ hold the mean of the seeds that are not in them."""
    full = entry["coverage"]["in_full"]
    names = {"one training of each": "questions only (one training of each proxy)"}
    rows = [
        [names.get(name, f"questions and training ({name})"), f"{100 * one['share']:.0f}%",
         f"{one['held']} of {one['of']}", f"{one['mean_width']:.2f}"]
        for name, one in full.items()
        if one["share"] is not None
    ]  # fmt: skip
    if not rows:
        return "How often intervals of λ hold the mean of other seeds needs more seeds."
    said = "How often the 95% interval of one run's λ holds the mean λ of the other seeds (of all tasks and seeds):"
    return f"{said}\n\n{table(['Interval', 'holds it', 'of', 'mean width'], rows)}"


def null_table(entry: Mapping[str, Any]) -> str:
    """How far λ strays from 1 where it is 1, and how often intervals hold that."""
    rows = []
    for name, key in (("plain", "weights"), ("shrunken", "shrunken")):
        values = np.array([list(weights.values()) for weights in entry[key].values()])
        away = np.abs(values - 1)
        near = f"{int((away <= NEAR).sum())} of {away.size}"
        rows.append([name, f"{values.min():.2f} to {values.max():.2f}", f"{away.mean():.3f}", near])
    intervals = [one for of in entry["intervals"].values() for one in of["weights"].values()]
    held = sum(one["low"] <= 1 <= one["high"] for one in intervals)
    kinds = " and ".join(sorted({of["kind"] for of in entry["intervals"].values()}))
    said = f"λ is 1 here. Its 95% intervals ({kinds}) hold 1 in {held} of {len(intervals)} cases."
    head = ["λ", "lowest to highest", "mean distance from 1", f"within 1 ± {NEAR}"]
    return f"{said}\n\n{table(head, rows)}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, the minus a true one."""
    return re.sub("-", "−", f"{value:+.{digits}f}")


def interval(values: Sequence[float]) -> str:
    """Student's 95% interval of the mean; a dash for few values."""
    if len(values) < FEWEST:
        return "–"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{signed(np.mean(values) - half)} to {signed(np.mean(values) + half)}"


# ---------------------------------------------------------------------------------------------- pictures


def draw(world: str, entry: Mapping[str, Any]) -> list[Path]:
    """Write docs/images/evidence-WORLD-methods.svg and -weights.svg: a point for each seed, and the means."""
    baseline = entry["baseline"]
    gains = {m: [v for v in of["delta_i"] if v is not None] for m, of in entry["methods"].items() if m != baseline}
    tasks = list(next(iter(entry["weights"].values())))
    weights = {task: [of[task] for of in entry["weights"].values()] for task in tasks}
    made = []
    for name, rows, label, line in (
        ("methods", gains, f"ΔI % against {baseline}", 0.0),
        ("weights", weights, "λ", 1.0),
    ):
        path = IMAGES / f"evidence-{world}-{name}.svg"
        with rc_context({**STYLE, "svg.hashsalt": "evidence"}):
            _points(rows, label, line).savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
        made.append(path)
    return made


def _points(rows: Mapping[str, Sequence[float]], label: str, line: float) -> Figure:
    figure = Figure(figsize=(5.6, 0.8 + 0.3 * len(rows)))
    axes = figure.add_subplot()
    axes.axvline(line, color="#1c1e21", linewidth=0.8, linestyle=(0, (4, 3)))
    for row, values in enumerate(rows.values()):
        axes.plot(values, [row] * len(values), "o", color=METHOD_COLOURS[3], markersize=4, alpha=0.6)
        if values:
            axes.plot([np.mean(values)], [row], "|", color="#1c1e21", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{label} (a point for each seed; bar: the mean)")
    axes.invert_yaxis()
    return figure
