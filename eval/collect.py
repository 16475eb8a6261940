"""A folder of score files (and per-sample files) in, a validation matrix and paired per-sample scores out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.answers import in_words
from eval.errors import EvaluationError
from eval.repeats import repeat_name, split_repeat
from eval.scores import SampleFile, ScoreFile, missing_identity, read_scores

logger = logging.getLogger("weighting_visatb")  # its command is what reads these files

_SHOWN = 3
PROXIES = ("mini", "base", "single_mini", "plus_mini", "single")
Samples = dict[str, dict[str, NDArray[np.float64]]]  # task → model → float64[2, n]: values and weights
File = TypeVar("File", ScoreFile, SampleFile)
Cell = tuple[str, str, int]  # kind, unit ("" where the kind has none) and repeat (0, 1, …) of a proxy


def proxy_of(model: str) -> Cell:
    """Which proxy a model's name means, and which repeat of its training: `plus_mini:A#3` → ("plus_mini", "A", 2)."""
    name, repeat = split_repeat(model)
    kind, _, unit = name.partition(":")
    return kind, unit, repeat - 1


def collect(
    folder: Path,
    split: str = "val",
    task_names: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, Any], Samples]:
    """Validation matrix, and per-sample scores where every score file of a task has them beside it.

    Files of other splits are left alone, as are models that are no proxies (a method's name). A proxy that was trained
    more than once (`mini`, `mini#2`, …) has lists in its cells, one figure per repeat. `task_names` gives the order
    (default: sorted); EvaluationError names two files that are of the same cell or do not fit together.
    """
    scores, samples = read_folder(folder, split)
    proxies = [score for score in scores if proxy_of(score.model)[0] in PROXIES]
    if not proxies:
        raise EvaluationError(f"{folder}: no score file of a proxy (mini, plus_mini:<task>, …) on split {split!r}")
    tasks = list(task_names) if task_names else sorted({score.task for score in proxies})
    if task_names:
        proxies = _of_tasks(proxies, {*tasks, *(groups or {})})
    _refuse_repeats_as_names([*tasks, *(groups or {})])
    placed = [(score, cell) for score in proxies if score.task in tasks and (cell := _cell(score, groups))]
    repeats = _repeats(placed)
    matrix: dict[str, Any] = {"tasks": tasks, "higher_is_better": {}, "num_samples": {}, "stderr": {}}
    if groups:
        matrix["groups"] = {name: list(members) for name, members in groups.items()}
    first: dict[str, ScoreFile] = {}
    for score, cell in placed:
        _same_kind(first.setdefault(score.task, score), score)
        matrix["higher_is_better"][score.task] = score.first.higher_is_better
        matrix["num_samples"][score.task] = score.num_samples
        count = repeats[cell[:2]]
        _place(matrix, score, cell, score.first.value, count)
        if score.first.stderr is not None:
            _place(matrix["stderr"], score, cell, score.first.stderr, count)
        if score.answers is not None:
            _place(matrix.setdefault("answers", {}), score, cell, score.answers, count)
    return matrix, _pair(samples, placed)


def _of_tasks(proxies: list[ScoreFile], units: set[str]) -> list[ScoreFile]:
    """Without the proxies of other tasks than the named ones; a warning names those that get no weight."""
    others = sorted({unit for score in proxies if (unit := proxy_of(score.model)[1]) and unit not in units})
    if others:
        logger.warning("no weight for %s: these have proxies, but are not among --task_names", ", ".join(others))
    return [score for score in proxies if proxy_of(score.model)[1] not in others]


def _refuse_repeats_as_names(names: Sequence[str]) -> None:
    for name in names:
        if split_repeat(name)[1] > 1:
            raise EvaluationError(
                f"the task or group {name!r} has a name like that of a repeat (`mini#2` is the second training of "
                "`mini`): give it another name, without # and a number at its end"
            )


def _repeats(placed: Sequence[tuple[ScoreFile, Cell]]) -> dict[tuple[str, str], int]:
    """How often each proxy (kind, unit) was trained."""
    counts: dict[tuple[str, str], int] = {}
    for _, (kind, unit, repeat) in placed:
        counts[kind, unit] = max(counts.get((kind, unit), 0), repeat + 1)
    return counts


def read_folder(folder: Path, split: str) -> tuple[list[ScoreFile], dict[tuple[str, str], SampleFile]]:
    """All score files of a split under `folder`, and the per-sample files by (task, model)."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    scores: dict[tuple[str, str], ScoreFile] = {}
    samples: dict[tuple[str, str], SampleFile] = {}
    nameless: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        found = read_scores(path, split)
        if found is None:
            continue  # answer files, matrices and weights may lie in the same folder
        if missing := missing_identity(found):
            nameless.append(f"{path} does not say {in_words(missing)}")
        elif isinstance(found, SampleFile):
            _add(samples, found, "per-sample scores")
        else:
            _add(scores, found, "a score file")
    if nameless:
        more = f"\n… and {len(nameless) - _SHOWN} more" if len(nameless) > _SHOWN else ""
        mend = "score again with --task, --model and --split as needed, or move what is not to enter the matrix"
        raise EvaluationError("\n".join(nameless[:_SHOWN]) + f"{more}\n{mend}")
    return list(scores.values()), samples


def _add(files: dict[tuple[str, str], File], file: File, kind: str) -> None:
    first = files.setdefault((file.task, file.model), file)
    if first is not file:
        raise EvaluationError(f"{file.path}: {file.model} on {file.task} has {kind} already, {first.path}")


def _same_kind(a: ScoreFile, b: ScoreFile) -> None:
    pairs = {
        "metric": (a.first.metric, b.first.metric),
        "higher_is_better": (a.first.higher_is_better, b.first.higher_is_better),
        "num_samples": (a.num_samples, b.num_samples),
    }
    for key, (of_a, of_b) in pairs.items():
        if of_a != of_b:
            raise EvaluationError(
                f"{b.path}: its {key} ({of_b}) is not that of {a.path} ({of_a}); "
                f"all proxies must answer the same questions of {a.task} and be scored alike"
            )


def _cell(score: ScoreFile, groups: Mapping[str, Sequence[str]] | None) -> Cell | None:
    """The matrix cell that a score file fills; None for a single mini on another unit's task."""
    cell = kind, unit, _ = proxy_of(score.model)
    own = kind != "single_mini" or score.task in (groups or {}).get(unit, [unit])
    return cell if own else None


def _row(cell: Cell) -> tuple[str, ...]:
    """The matrix's keys down to a model's figures; all single minis share one, each with its own tasks."""
    kind, unit, _ = cell
    return (kind, unit) if unit and kind != "single_mini" else (kind,)


def _place(matrix: dict[str, Any], score: ScoreFile, cell: Cell, value: Any, repeats: int) -> None:
    """Put a value into its cell; with repeats, into its place in the cell's list, where null is a missing one."""
    row = matrix
    for key in _row(cell):
        row = row.setdefault(key, {})
    if repeats == 1:
        row[score.task] = value
    else:
        row.setdefault(score.task, [None] * repeats)[cell[2]] = value


def _pair(
    samples: Mapping[tuple[str, str], SampleFile], proxies: Sequence[tuple[ScoreFile, Cell]]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Per-sample arrays of the score files that have them; EvaluationError if of other questions or values."""
    paired: Samples = {}
    first: dict[str, SampleFile] = {}
    for score, cell in proxies:
        if (score.task, score.model) not in samples:
            continue
        file = samples[score.task, score.model]
        values = _values(file, score.first.metric)
        if file.ids != first.setdefault(score.task, file).ids:
            raise EvaluationError(
                f"{file.path}: its question ids, or their order, are not those of {first[score.task].path}"
            )
        mean = (values[0] * values[1]).sum() / max(values[1].sum(), np.finfo(float).tiny)
        if not np.isclose(mean, score.first.value, rtol=1e-6, atol=1e-9):
            raise EvaluationError(
                f"{file.path}: its mean is {mean:.6g}, but {score.path} says {score.first.value:.6g}; score anew"
            )
        model = repeat_name(":".join(_row(cell)), cell[2] + 1)
        paired.setdefault(score.task, {})[model] = values
    return paired


def _values(file: SampleFile, metric: str) -> NDArray[np.float64]:
    if metric not in file.columns:
        raise EvaluationError(f"{file.path}: not a per-sample file of {metric} (not every question has its value)")
    return np.array(file.columns[metric], dtype=np.float64)
