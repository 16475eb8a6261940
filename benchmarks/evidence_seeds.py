"""Work folders of many seeds as one: figures by seed, λ by seed, and what the intervals of one run's λ hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval.collect import collect
from eval.files import read_json
from visatb.workdir.layout import Layout
from visatb.workdir.results_file import Results
from visatb.workdir.scores import Cell, read_cells
from visatb.workdir.verdict import Comparison, compare
from weighting_visatb import build_problem, weigh

_PLACES = ("name", "model", "tasks", "image_folder", "launcher", "data_folder")
_FOLDER = re.compile(r"(?P<world>[a-z_]+)-(?P<seed>\d+)")
Samples = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Seed:
    """A complete work folder of one seed."""

    number: int
    layout: Layout

    @cached_property
    def results(self) -> Results:
        if (found := Results.read(self.layout)) is None:
            raise ValueError(f"{self.layout.root}: lacks its results")
        return found

    @cached_property
    def measured(self) -> tuple[dict[str, Any], Samples]:
        """Validation matrix and per-sample scores of the proxies."""
        matrix, samples = collect(self.layout.root / "scores", "val", list(read_json(self.layout.weights)["tasks"]))
        matrix.pop("answers", None)  # what a model's answers have in common is no matter of noise
        return matrix, {task: dict(models) for task, models in samples.items()}

    @cached_property
    def weights(self) -> dict[str, Any]:
        """λ with its intervals as the weighting script of today gives them, from this seed's scores alone."""
        return weights_of(*self.measured, self.settings)

    @cached_property
    def experiment(self) -> dict[str, Any]:
        return dict(yaml.safe_load(self.layout.experiment.read_text(encoding="utf-8")))

    @cached_property
    def compared_settings(self) -> dict[str, Any]:
        """The experiment's settings by dotted name, without seeds and places."""
        flat = dict(_flat({key: value for key, value in self.experiment.items() if key not in _PLACES}))
        return {key: value for key, value in flat.items() if not key.endswith("seed")}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the weights were computed with."""
        stored = read_json(self.layout.weights)
        return {
            "temperature": stored["temperature"],
            "alpha": list(stored["alpha"].values()),
            "on_degenerate": self.experiment["weighting"]["on_degenerate"],
        }


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def find(folders: Sequence[Path]) -> dict[str, list[Seed]]:
    """World → its complete work folders, by seed. ValueError where two are of one seed, or of other settings."""
    worlds: dict[str, dict[int, Seed]] = {}
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        match = _FOLDER.fullmatch(path.name)
        if not match or not (path / "all.ok").exists():
            continue
        seeds = worlds.setdefault(match["world"], {})
        number = int(match["seed"])
        if number in seeds:
            raise ValueError(f"{path} and {seeds[number].layout.root} are of the same world and seed; name one of them")
        seeds[number] = Seed(number, Layout(path))
    found = {world: [seeds[number] for number in sorted(seeds)] for world, seeds in worlds.items()}
    for seeds_of_world in found.values():
        _refuse_other_settings(seeds_of_world)
    return found


def _refuse_other_settings(seeds: Sequence[Seed]) -> None:
    """ValueError where folders differ in more than seeds and places, as far as both say (an older one says less)."""
    first = seeds[0].compared_settings
    for seed in seeds[1:]:
        mine = seed.compared_settings
        if other := [key for key in first if key in mine and first[key] != mine[key]]:
            raise ValueError(
                f"{seed.layout.root}: {other[0]} is {mine[other[0]]!r}, but {first[other[0]]!r} in "
                f"{seeds[0].layout.root}; only seeds may differ: move one of them away"
            )


def weights_of(matrix: Mapping[str, Any], samples: Samples, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The weights file's content for a matrix and the settings of a folder."""
    return weigh(build_problem(matrix), samples=samples, **settings)


def joined(first: Seed, others: Sequence[Seed], models: Sequence[str]) -> tuple[dict[str, Any], Samples]:
    """The matrix of one seed in which some kinds of models (`mini`, `plus_mini`) have the other seeds' as repeats."""
    matrix, samples = first.measured
    runs = [first.measured, *(other.measured for other in others)]
    whole: dict[str, Any] = {**matrix, "stderr": {**matrix["stderr"]}}
    for kind in models:
        whole[kind] = _lists([run[0][kind] for run in runs])
        whole["stderr"][kind] = _lists([run[0]["stderr"][kind] for run in runs])
    answered = {task: dict(found) for task, found in samples.items()}
    for place, (_, found) in enumerate(runs[1:], 2):
        for task, of_task in found.items():
            more = {name: values for name, values in of_task.items() if name.partition(":")[0] in models}
            answered[task] |= {f"{name}#{place}": values for name, values in more.items()}
    return whole, answered


def _lists(cells: Sequence[Any]) -> Any:
    """Equal shapes of numbers as one of lists."""
    if isinstance(cells[0], Mapping):
        return {key: _lists([cell[key] for cell in cells]) for key in cells[0]}
    return list(cells)


def coverage(seeds: Sequence[Seed], repeats: int, models: Sequence[str]) -> dict[str, Any]:
    """How often the 95% interval of one run's λ holds the mean λ of the seeds that are not in it.

    One run: a seed's matrix with the models of kinds `models` of the next `repeats` − 1 seeds as repeats. None where
    no seed is left over.
    """
    held, total, widths = 0, 0, []
    kind = "both" if repeats > 1 else "questions"
    for place, seed in enumerate(seeds):
        others = [seeds[(place + step) % len(seeds)] for step in range(1, repeats)]
        left = [other for other in seeds if other is not seed and other not in others]
        if len(left) < 2:
            return {"share": None, "held": 0, "of": 0, "repeats": repeats, "models": list(models)}
        content = seed.weights if repeats == 1 else weights_of(*joined(seed, others, models), seed.settings)
        intervals = content["uncertainty"][kind]["weights"]
        for task, interval in intervals.items():
            target = float(np.mean([other.weights["weights"][task] for other in left]))
            held += interval["low"] <= target <= interval["high"]
            total += 1
            widths.append(interval["high"] - interval["low"])
    return {
        "share": held / total,
        "held": held,
        "of": total,
        "repeats": repeats,
        "models": list(models),
        "mean_width": float(np.mean(widths)),
    }


def comparisons(seeds: Sequence[Seed], same_questions: bool = True) -> list[Comparison]:
    """All methods against EW and STL with the seeds as their runs, by the product's own statistics.

    Where seeds have other questions (`same_questions` false), these are part of what differs from seed to seed.
    """
    first = seeds[0].results
    methods = [name for name in first.methods if all(name in seed.results.methods for seed in seeds)]
    runs = {m: {task: [seed.results.runs_of(m, task)[0] for seed in seeds] for task in first.tasks} for m in methods}
    known = dict.fromkeys(methods, 0.0)  # that there are ΔI and ΔE; compare computes them
    results = Results(
        baseline=first.baseline,
        tasks=first.tasks,
        metrics=first.metrics,
        methods={m: {t: np.mean(of, axis=0).tolist() for t, of in row.items()} for m, row in runs.items()},
        runs=runs,
        repeats=dict.fromkeys(methods, len(seeds)),
        stl_runs={task: [f"STL#{number}" for number in range(1, len(seeds) + 1)] for task in first.tasks},
        delta_i=known,
        delta_e=known,
        delta_tasks=first.tasks,
    )

    def cells(task: str, model: str) -> list[Cell]:
        method, _, number = model.partition("#")
        seed = seeds[int(number or 1) - 1]
        return read_cells(seed.layout, task, seed.results.models_of(method, task)[0]) if same_questions else []

    return compare(results, cells)
