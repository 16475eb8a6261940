"""A folder of score files (and per-sample files) in, a validation matrix and paired per-sample scores out."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.core import IDENTITY, EvaluationError, in_words, read_json

logger = logging.getLogger("weighting_visatb")  # its command is what reads these files

_SHOWN = 3
_REPEAT = re.compile(r"#([2-9]|[1-9][0-9]{1,3})$")  # `mini` trained once more is `mini#2`, then `mini#3`, …
PROXIES = ("mini", "base", "single_mini", "plus_mini", "single")
Samples = dict[str, dict[str, NDArray[np.float64]]]  # task → model → float64[2, n]: values and weights
Cell = tuple[str, str, int]  # kind, unit ("" where the kind has none) and repeat (0, 1, …) of a proxy


@dataclass(frozen=True)
class ScoreFile:
    """A score file's first metric, which is the one that feeds task weighting."""

    path: Path
    task: str
    model: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool
    num_samples: int
    answers: Mapping[str, Any] | None = None  # counts of empty, distinct and equal answers; older files have none

    @property
    def proxy(self) -> Cell:
        """Which proxy's, and which repeat of its training: `plus_mini:A#3` is ("plus_mini", "A", 2)."""
        kind, _, unit = _REPEAT.sub("", self.model).partition(":")
        repeat = _REPEAT.search(self.model)
        return kind, unit, int(repeat[1]) - 1 if repeat else 0


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
    proxies = [score for score in scores if score.proxy[0] in PROXIES]
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
        matrix["higher_is_better"][score.task] = score.higher_is_better
        matrix["num_samples"][score.task] = score.num_samples
        count = repeats[cell[:2]]
        _place(matrix, score, cell, score.value, count)
        if score.stderr is not None:
            _place(matrix["stderr"], score, cell, score.stderr, count)
        if score.answers is not None:
            _place(matrix.setdefault("answers", {}), score, cell, score.answers, count)
    return matrix, _pair(samples, placed)


def _of_tasks(proxies: list[ScoreFile], units: set[str]) -> list[ScoreFile]:
    """Without the proxies of other tasks than the named ones; a warning names those that get no weight."""
    others = sorted({unit for score in proxies if (unit := score.proxy[1]) and unit not in units})
    if others:
        logger.warning("no weight for %s: these have proxies, but are not among --task_names", ", ".join(others))
    return [score for score in proxies if score.proxy[1] not in others]


def _refuse_repeats_as_names(names: Sequence[str]) -> None:
    for name in names:
        if _REPEAT.search(name):
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


def read_folder(folder: Path, split: str) -> tuple[list[ScoreFile], dict[tuple[str, str], Any]]:
    """All score files of a split under `folder`, and the per-sample files' content by (task, model)."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    scores: dict[tuple[str, str], ScoreFile] = {}
    samples: dict[tuple[str, str], Any] = {}
    nameless: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        content = read_json(path)
        if not _is_scores(content) or content.get("split", split) != split:
            continue  # answer files, matrices and weights may lie in the same folder
        if missing := [key for key in IDENTITY if key not in content]:
            nameless.append(f"{path} does not say {in_words(missing)}")
            continue
        key = (str(content["task"]), str(content["model"]))
        if "samples" in content:
            if key in samples:
                raise EvaluationError(f"{path}: {key[1]} on {key[0]} has per-sample scores already, {samples[key][0]}")
            samples[key] = (path, content["samples"])
        elif "scores" in content:
            if key in scores:
                raise EvaluationError(f"{path}: {key[1]} on {key[0]} has a score file already, {scores[key].path}")
            scores[key] = parse_score_file(path, content)
    if nameless:
        more = f"\n… and {len(nameless) - _SHOWN} more" if len(nameless) > _SHOWN else ""
        mend = "score again with --task, --model and --split as needed, or move what is not to enter the matrix"
        raise EvaluationError("\n".join(nameless[:_SHOWN]) + f"{more}\n{mend}")
    return list(scores.values()), samples


def _is_scores(content: Any) -> bool:
    """Whether this is a score file or a per-sample file, whoever's it is."""
    if not isinstance(content, dict) or not {"scores", "samples"} & content.keys():
        return False
    if content.keys() >= set(IDENTITY):
        return True
    rows = content.get("samples", [])
    return "num_malformed" in content or bool(rows and isinstance(rows[0], dict) and "malformed" in rows[0])


def parse_score_file(path: Path, content: Mapping[str, Any]) -> ScoreFile:
    """A score file's first metric; EvaluationError where an entry is missing or of another type."""
    try:
        entry = content["scores"][0]
        stderr = entry.get("stderr")
        if not np.isfinite(entry["value"]) or (stderr is not None and not stderr >= 0):
            raise ValueError(f"value {entry['value']!r}, stderr {stderr!r}")
        return ScoreFile(
            path=path,
            task=str(content["task"]),
            model=str(content["model"]),
            metric=str(entry["metric"]),
            value=float(entry["value"]),
            stderr=None if stderr is None else float(stderr),
            higher_is_better=bool(entry.get("higher_is_better", True)),
            num_samples=int(content["num_samples"]),
            answers=content.get("answers"),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path}: not a score file ({type(error).__name__}: {error})") from error


def _same_kind(a: ScoreFile, b: ScoreFile) -> None:
    for key in ("metric", "higher_is_better", "num_samples"):
        if getattr(a, key) != getattr(b, key):
            raise EvaluationError(
                f"{b.path}: its {key} ({getattr(b, key)}) is not that of {a.path} ({getattr(a, key)}); "
                f"all proxies must answer the same questions of {a.task} and be scored alike"
            )


def _cell(score: ScoreFile, groups: Mapping[str, Sequence[str]] | None) -> Cell | None:
    """The matrix cell that a score file fills; None for a single mini on another unit's task."""
    kind, unit, _ = score.proxy
    own = kind != "single_mini" or score.task in (groups or {}).get(unit, [unit])
    return score.proxy if own else None


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


def _pair(samples: Mapping[tuple[str, str], Any], proxies: Sequence[tuple[ScoreFile, Cell]]) -> Samples:
    """Per-sample arrays of the score files that have them; EvaluationError if of other questions or figures."""
    paired: Samples = {}
    ids: dict[str, tuple[Path, list[str]]] = {}
    for score, cell in proxies:
        if (score.task, score.model) not in samples:
            continue
        path, entries = samples[score.task, score.model]
        names, values = _values(path, entries, score.metric)
        first, wanted = ids.setdefault(score.task, (path, names))
        if names != wanted:
            raise EvaluationError(f"{path}: its question ids, or their order, are not those of {first}")
        mean = (values[0] * values[1]).sum() / max(values[1].sum(), np.finfo(float).tiny)
        if not np.isclose(mean, score.value, rtol=1e-6, atol=1e-9):
            raise EvaluationError(
                f"{path}: its mean is {mean:.6g}, but {score.path} says {score.value:.6g}; score anew"
            )
        model = ":".join(_row(cell)) + (f"#{cell[2] + 1}" if cell[2] else "")
        paired.setdefault(score.task, {})[model] = values
    return paired


def _values(path: Path, entries: Any, metric: str) -> tuple[list[str], NDArray[np.float64]]:
    try:
        names = [entry["id"] for entry in entries]
        pairs = [(entry["values"][metric], entry.get("weights", {}).get(metric, 1.0)) for entry in entries]
        return names, np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path}: not a per-sample file ({type(error).__name__}: {error})") from error
