"""The null experiment: one task's data, split at random into tasks that differ in nothing but chance.

Such tasks are equally hard and help each other as much as themselves, so λ is 1 and no weighting changes anything: what
an experiment finds beyond that is noise. Whoever runs it on a task of their own sees how much of it there is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.files import move_into_place
from visatb.experiment import records
from visatb.experiment.yaml_lines import ExperimentError

PARTS = 5
Files = dict[str, dict[str, list[Path]]]
"""Task → split → files."""


def split_at_random(files: Mapping[str, Sequence[Path]], task: str, folder: Path, seed: int = 0) -> Files:
    """Write every split of `task` as PARTS tasks of equal size into a new `folder`, which appears whole or not at all.

    A split of n records gives each part ⌊n ÷ PARTS⌋ of them, drawn by the seed; what is left over is left out.

    Raises:
        ExperimentError: there is no validation data, a split holds fewer records than parts, or `folder` exists.
        DataError: a file is no LLaVA JSON.
    """
    if "val" not in files:
        raise ExperimentError(f"task {task} has no validation data ({task}_val…): λ cannot be measured on it")
    if folder.exists():
        raise ExperimentError(f"{folder} exists: remove it, or name another --output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    found: Files = {}
    try:
        temporary.chmod(0o755)
        for split, paths in files.items():
            for part, places in _parts(task, split, paths, seed).items():
                taken = records.pick([str(path) for path in paths], places, task)
                name = f"{part}_{split}-{len(places)}.json"
                records.write_records(temporary / name, ({**record, "task": part} for record in taken))
                found.setdefault(part, {})[split] = [folder / name]
        move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _parts(task: str, split: str, paths: Sequence[Path], seed: int) -> dict[str, list[int]]:
    """Part → the places of its records in the files laid end to end, in order."""
    total = records.count([str(path) for path in paths])
    size = total // PARTS
    if size == 0:
        raise ExperimentError(f"{paths[0]}: {total} records cannot be split into {PARTS} tasks")
    places = records.permutation(f"null {task} {split}", total, seed)
    return {f"{task}-{n + 1}": sorted(places[n * size : (n + 1) * size].tolist()) for n in range(PARTS)}
