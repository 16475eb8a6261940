"""What λ costs, and how near cheaper ways of finding it come to the full recipe.

Command:  python -m benchmarks.cheap_lambda run FOLDER --worlds tiny --seeds 1 2 3 4 5 6 7 8
          python -m benchmarks.cheap_lambda tables FOLDER
Cost:     `run`, CPU minutes of one core for each seed: tiny 12, kinds 15, nlvr 40 (its data and base: docs/nlvr.md).
Result:   `run`: FOLDER/WORLD-SEED/estimates.jsonl, a line for each candidate; what is there is not made again.
          `tables`: benchmarks/results/cheap_lambda.json, from what is there.

Worlds: `tiny` and `nlvr` as in examples/; `kinds`, not looked at while candidates were thought of: the question types
of the tiny world's vqa and chart (three times the data) as seven tasks of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.stats import spearmanr

import weighting_visatb as weighting
from benchmarks.proxy_lab import Cost, Lab, Training, World
from benchmarks.record import RESULTS, machine
from visatb.experiment.read import load_experiment

ROOT = Path(__file__).parents[1]
Array = NDArray[np.float64]


@dataclass
class Estimate:
    """λ float64[N] as one candidate finds it, C float64[N, N], D float64[N], and what it cost."""

    weights: Array
    contributions: Array
    difficulties: Array
    cost: Cost


# ---- the pieces


def sizes(lab: Lab, mini: float, large: float | None = None, unit: str | None = None) -> dict[str, int]:
    """Samples of each task at the rate `mini`, of `unit` at `large`."""
    rate = {task: large if task == unit else mini for task in lab.world.tasks}
    return {task: max(1, round(lab.world.count[task] * float(rate[task] or 0))) for task in lab.world.tasks}


def proxies(lab: Lab, mini: float, large: float, shared: bool = False, **how: Any) -> dict[str, Training]:
    """`mini` and one proxy of each task; `shared`: they go on from the mini model with what is new to it alone."""
    start = Training(sizes(lab, mini), **how)
    found = {"mini": start}
    for task in lab.world.tasks:
        if shared:
            new = max(1, sizes(lab, mini, large, task)[task] - start.sizes[task])
            found[task] = Training({task: new}, start=start, skip={task: start.sizes[task]}, **how)
        else:
            found[task] = Training(sizes(lab, mini, large, task), **how)
    return found


def trained(lab: Lab, models: Mapping[str, Training]) -> Cost:
    """What the trainings of some models cost."""
    return sum((lab.trained(model).cost for model in models.values()), Cost())


def matrix(lab: Lab, models: Mapping[str, Training], by: str, count: int) -> tuple[dict[str, Any], Cost]:
    """The validation matrix by `answers` or `losses` of so many questions a task, and what it cost."""
    cost = Cost()
    rows: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        columns = {}
        for task in lab.world.tasks:
            columns[task], took = getattr(lab, by)(model, task, count)
            cost += took
        rows[name] = columns
    figures = {name: {task: column.mean() for task, column in row.items()} for name, row in rows.items()}
    errors = {name: {task: column.stderr() for task, column in row.items()} for name, row in rows.items()}
    upwards = {task: column.higher_is_better for task, column in rows["mini"].items()}

    def nested(cells: dict[str, Any]) -> dict[str, Any]:
        return {"mini": cells["mini"], "plus_mini": {task: cells[task] for task in lab.world.tasks}}

    content = {"tasks": lab.world.tasks, "higher_is_better": upwards, **nested(figures), "stderr": nested(errors)}
    return content, cost


def solved(lab: Lab, content: dict[str, Any], shrink: bool = False) -> dict[str, Any]:
    """The weights file's content of a matrix; degenerate columns are left out, as nobody looks at them here."""
    return weighting.weigh(
        weighting.build_problem(content),
        temperature=lab.world.experiment.weighting.temperature,
        on_degenerate="drop",
        bootstrap=300 if shrink else 0,
        shrinkage="auto" if shrink else "none",
    )


def estimate(lab: Lab, content: dict[str, Any], cost: Cost, shrink: bool = False) -> Estimate:
    """The estimate that a matrix gives."""
    found = solved(lab, content, shrink)
    tasks = lab.world.tasks
    return Estimate(
        np.array([found["weights"][task] for task in tasks]),
        _array(found["contributions"]),
        _array([found["difficulties"][task] for task in tasks]),
        cost,
    )


def _array(values: Any) -> Array:
    return np.array(values, dtype=object).astype(np.float64)  # None becomes NaN


def combined(lab: Lab, contributions: Array, difficulties: Array, cost: Cost) -> Estimate:
    """The estimate of C and D that were found in different ways."""
    means = weighting.mean_contributions(contributions)
    temperature = float(lab.world.experiment.weighting.temperature)
    return Estimate(weighting.visatb_weights(*means, difficulties, temperature), contributions, difficulties, cost)


# ---- the candidates


def by_proxies(
    lab: Lab, mini: float, large: float, by: str = "losses", count: int = 10**6, shrink: bool = False, **how: Any
) -> Estimate:
    """Proxies on smaller subsets, from a shared start, at other learning rates, with adapters, cut short."""
    if scale := how.pop("rate", None):
        how["learning_rate"] = scale * lab.world.learning_rate
    models = proxies(lab, mini, large, **how)
    content, cost = matrix(lab, models, by, count)
    return estimate(lab, content, cost + trained(lab, models), shrink)


def mixed(lab: Lab, mini: float, large: float, count: int, **how: Any) -> Estimate:
    """C by losses of all proxies on all tasks, D by the answers of each task's own two models."""
    models = proxies(lab, mini, large, **how)
    content, cost = matrix(lab, models, "losses", count)
    low: list[float] = []
    high: list[float] = []
    for task in lab.world.tasks:
        for name, figures in (("mini", low), (task, high)):
            column, took = lab.answers(models[name], task, count)
            figures.append(column.mean())
            cost += took
    hard = weighting.difficulties(np.array(low), np.array(high))
    return combined(lab, _array(solved(lab, content)["contributions"]), hard, cost + trained(lab, models))


def by_gradients(lab: Lab, mini: float, rows: int, amount: str = "tokens", curve: float = 0.25) -> Estimate:
    """C to first order at the mini model; D from the learning curve of the losses, between two sizes of minis.

    Data of task i move the loss on task j by the product of their gradients. `amount`: what i's data count, by their
    tokens or all alike. The losses are taken to fall as a power of the data, so that D = 1 − (mini / whole)^power.
    """
    world, tasks = lab.world, lab.world.tasks
    model, smaller = Training(sizes(lab, mini)), Training(sizes(lab, mini * curve))
    cost = trained(lab, {"mini": model, "smaller": smaller})
    learning: list[Array] = []
    judging: list[Array] = []
    for task in tasks:
        chosen = [world.train[task][i] for i in lab.order[task][model.sizes[task] :][:rows]]
        for found, part in ((learning, chosen), (judging, world.truths[task][:rows])):
            gradient, took = lab.gradient(model, part, task)
            found.append(gradient.double().numpy())
            cost += took
    products = np.stack(learning) @ np.stack(judging).T
    if amount == "tokens":
        targets = {t: sum(int((row["labels"] != -100).sum()) for row in world.train[t]) for t in tasks}
        products *= np.array([targets[task] for task in tasks])[:, None]
    contributions = np.clip(products / np.diag(products), -3, 3)
    fall = []
    for task in tasks:
        (now, first), (before, second) = (lab.losses(m, task, rows) for m in (model, smaller))
        cost += first + second
        fall.append(np.log(before.mean() / now.mean()) / np.log(1 / curve))
    difficulties = 1 - mini ** np.clip(fall, 0, None)
    return combined(lab, contributions, difficulties, cost)


def equal(lab: Lab) -> Estimate:
    """λ = 1: what costs nothing, and what every candidate has to beat."""
    n = len(lab.world.tasks)
    return Estimate(np.ones(n), np.ones((n, n)), np.zeros(n), Cost())


def _full(lab: Lab, **more: Any) -> Estimate:
    subsets = lab.world.experiment.subsets
    return by_proxies(lab, subsets.mini, subsets.large, **more)


CANDIDATES: dict[str, Callable[[Lab], Estimate]] = {
    "full": partial(_full, by="answers"),
    "equal weights": equal,
    "full, losses": _full,
    "full, losses of 50": partial(_full, count=50),
    "full, answers of 50": partial(_full, by="answers", count=50),
    "large 1/2, losses": partial(by_proxies, mini=1 / 8, large=1 / 2),
    "large 1/4, losses": partial(by_proxies, mini=1 / 8, large=1 / 4),
    "large 1/2, mini 1/16, losses": partial(by_proxies, mini=1 / 16, large=1 / 2),
    "large 1/4, mini 1/16, losses": partial(by_proxies, mini=1 / 16, large=1 / 4),
    "large 1/4, mini 1/32, losses": partial(by_proxies, mini=1 / 32, large=1 / 4),
    "large 1/8, mini 1/32, losses": partial(by_proxies, mini=1 / 32, large=1 / 8),
    "large 1/16, mini 1/64, losses of 50": partial(by_proxies, mini=1 / 64, large=1 / 16, count=50),
    "large 1/2, answers": partial(by_proxies, mini=1 / 8, large=1 / 2, by="answers"),
    "large 1/4, answers": partial(by_proxies, mini=1 / 8, large=1 / 4, by="answers"),
    "large 1/8, mini 1/32, answers": partial(by_proxies, mini=1 / 32, large=1 / 8, by="answers"),
    "large 1/2, mixed": partial(mixed, mini=1 / 8, large=1 / 2, count=200),
    "large 1/8, mini 1/32, mixed": partial(mixed, mini=1 / 32, large=1 / 8, count=100),
    "shared start, losses": partial(_full, shared=True),
    "shared start, large 1/4, losses": partial(by_proxies, mini=1 / 8, large=1 / 4, shared=True),
    "shared start, large 1/4, rate 1/4, losses": partial(by_proxies, mini=1 / 8, large=1 / 4, shared=True, rate=1 / 4),
    "half the steps, losses": partial(_full, share=0.5),
    "quarter of the steps, losses": partial(_full, share=0.25),
    "tenth of the steps, losses": partial(_full, share=0.1),
    "large 1/2, rate 1/4, losses": partial(by_proxies, mini=1 / 8, large=1 / 2, rate=1 / 4),
    "large 1/2, rank 8, losses": partial(by_proxies, mini=1 / 8, large=1 / 2, rank=8),
    "large 1/2, rank 64, losses": partial(by_proxies, mini=1 / 8, large=1 / 2, rank=64),
    "large 1/4, losses, shrunken": partial(by_proxies, mini=1 / 8, large=1 / 4, shrink=True),
    "large 1/8, mini 1/32, losses, shrunken": partial(by_proxies, mini=1 / 32, large=1 / 8, shrink=True),
    "gradients at mini 1/8": partial(by_gradients, mini=1 / 8, rows=64),
    "gradients at mini 1/16": partial(by_gradients, mini=1 / 16, rows=64),
    "gradients at mini 1/32": partial(by_gradients, mini=1 / 32, rows=64),
    "gradients at mini 1/32, all alike": partial(by_gradients, mini=1 / 32, rows=64, amount="samples"),
}


# ---- worlds


def make_world(name: str, folder: Path) -> World:
    """The world, with its data made where they are not there."""
    example = ROOT / "examples" / ("nlvr.yaml" if name == "nlvr" else "tiny.yaml")
    if name == "tiny":
        _prepare("tiny", ROOT / "data" / "tiny")
    if name == "kinds":
        example = _kinds(folder)
    return World(load_experiment(example), folder / "index")


def _prepare(world: str, output: Path, *more: str) -> None:
    words = [sys.executable, "-m", "visatb.cli", "prepare", world, "--output", str(output), *more]
    subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


KINDS = {
    "exists": ("vqa", "Is there"),
    "count": ("vqa", "How many"),
    "attribute": ("vqa", "What "),
    "side": ("vqa", "Is the "),
    "value": ("chart", "What is"),
    "which": ("chart", "What colour"),
    "compare": ("chart", "Is the"),
}
"""Task of the world `kinds` → the tiny world's task that it comes from, and how its questions begin."""


def _kinds(folder: Path) -> Path:
    """Write the data and the experiment file of the world `kinds`."""
    source, target = folder / "tiny-3", folder / "kinds"
    _prepare("tiny", source, "--scale", "3")
    target.mkdir(exist_ok=True)
    tasks: dict[str, Any] = {}
    for task, (origin, begins) in KINDS.items():
        tasks[task] = {"metric": "em"}
        for split in ("train", "val", "test"):
            [file] = source.glob(f"{origin}_{split}-*.json")
            records = [
                {**record, "task": task}
                for record in json.loads(file.read_text())
                if record["conversations"][0]["value"].replace("<image>", "").strip().startswith(begins)
            ]
            tasks[task][split] = f"{task}_{split}.json"
            (target / tasks[task][split]).write_text(json.dumps(records))
    content = yaml.safe_load((ROOT / "examples" / "tiny.yaml").read_text())
    content |= {"name": "kinds", "data_folder": str(target), "image_folder": str(source), "tasks": tasks}
    content["model"]["path"] = str(ROOT / "examples" / "tiny" / "base")
    path = folder / "kinds.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# ---- the command


def run(folder: Path, name: str, seeds: list[int], only: list[str]) -> None:
    """Estimate λ by every candidate that has no line yet."""
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(name, folder)
    for seed in seeds:
        lab = Lab(world, seed, folder / f"{name}-{seed}")
        path = lab.folder / "estimates.jsonl"
        done = {entry["candidate"] for entry in _lines(path)}
        final = lab.trained(Training(dict(world.count))).cost
        for candidate, find in CANDIDATES.items():
            if candidate in done or (only and candidate not in only):
                continue
            found = find(lab)
            entry = {
                "candidate": candidate,
                "tasks": world.tasks,
                "weights": found.weights.tolist(),
                "contributions": found.contributions.tolist(),
                "difficulties": found.difficulties.tolist(),
                "cost": asdict(found.cost),
                "final": asdict(final),
            }
            with path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(name, seed, candidate, np.round(found.weights, 2), f"{found.cost.cpu / final.cpu:.2f}", flush=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Candidate → its figures in a world."""
    by: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"{name}-*/estimates.jsonl")):
        for entry in _lines(path):
            by.setdefault(entry["candidate"], {})[int(path.parent.name.rpartition("-")[2])] = entry
    full = by.get("full", {})
    if len(full) < 2:
        return {}
    truth = {seed: np.array(entry["weights"]) for seed, entry in full.items()}
    spread = float(np.std(list(truth.values()), axis=0, ddof=1).mean())
    return {candidate: _figures(entries, full, truth, spread) for candidate, entries in by.items()}


def _figures(
    entries: Mapping[int, dict[str, Any]], full: Mapping[int, dict[str, Any]], truth: Mapping[int, Array], spread: float
) -> dict[str, Any]:
    """One candidate's figures: errors against the mean of the full recipe's λ over the other seeds."""
    errors, shares, ranks_c, ranks_d = [], [], [], []
    for seed, entry in entries.items():
        others = [number for number in truth if number != seed]
        errors.append(np.abs(np.array(entry["weights"]) - np.mean([truth[number] for number in others], axis=0)))
        shares.append({unit: entry["cost"][unit] / entry["final"][unit] for unit in ("samples", "flops", "cpu")})
        off = ~np.eye(len(entry["tasks"]), dtype=bool)
        c = np.nanmean([np.array(full[number]["contributions"], float) for number in others], axis=0)
        d = np.nanmean([np.array(full[number]["difficulties"], float) for number in others], axis=0)
        ranks_c.append(_rank(np.array(entry["contributions"], float)[off], c[off]))
        ranks_d.append(_rank(np.array(entry["difficulties"], float), d))
    mean = float(np.mean(errors))
    return {
        **{f"share_{unit}": float(np.mean([share[unit] for share in shares])) for unit in ("samples", "flops", "cpu")},
        "mean_error": mean,
        "largest_error": float(np.max(errors)),
        "error_over_spread": mean / spread,
        "spearman_c": float(np.nanmean(ranks_c)) if np.isfinite(ranks_c).any() else None,
        "spearman_d": float(np.nanmean(ranks_d)) if np.isfinite(ranks_d).any() else None,
        "seeds": sorted(entries),
    }


def _rank(found: Array, wanted: Array) -> float:
    both = np.isfinite(found) & np.isfinite(wanted)
    if both.sum() < 3 or np.ptp(found[both]) == 0:
        return np.nan
    return float(spearmanr(found[both], wanted[both]).statistic)


def write_tables(folder: Path) -> Path:
    """Write benchmarks/results/cheap_lambda.json."""
    worlds = {name: table(folder, name) for name in ("tiny", "nlvr", "kinds")}
    recipes = [
        {
            "name": candidate,
            "shipped": candidate == "full",
            "worlds": {world: rows[candidate] for world, rows in worlds.items() if candidate in rows},
        }
        for candidate in CANDIDATES
    ]
    path = RESULTS / "cheap_lambda.json"
    path.write_text(json.dumps({"machine": machine(), "recipes": recipes}, indent=1) + "\n")
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.cheap_lambda", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("run", help="make the estimates that are not there")
    making.add_argument("folder", type=Path)
    making.add_argument("--worlds", nargs="+", default=["tiny"], choices=["tiny", "nlvr", "kinds"])
    making.add_argument("--seeds", nargs="+", type=int, required=True)
    making.add_argument("--candidates", nargs="+", default=[], choices=list(CANDIDATES), metavar="NAME")
    reading = commands.add_parser("tables", help="write the results of what is there")
    reading.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    if args.command == "run":
        for name in args.worlds:
            run(args.folder, name, args.seeds, args.candidates)
    else:
        print(write_tables(args.folder))


if __name__ == "__main__":
    main()
