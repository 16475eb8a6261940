"""Whether the disk has room for what an experiment has still to write."""

from __future__ import annotations

import shutil
from pathlib import Path

from visatb.experiment.models import models
from visatb.experiment.schema import Experiment
from visatb.experiment.training import optimizer_steps
from visatb.workdir.layout import Layout
from visatb.workdir.subsets import Counts, counts
from visatb.workflow.estimate import count_records, disk_bytes, parameters


def shortage(experiment: Experiment, workdir: Path) -> str | None:
    """What to say where less disk is free than is needed, None where it is enough or the model's size is not known.

    Records are counted only where it could be too little. Raises ExperimentError, DataError as `make_plan` does.
    """
    size = parameters(experiment)
    if size is None:
        return None
    experiment = experiment.with_groups({})
    there = next(folder for folder in (workdir.absolute(), *workdir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    most = counts(experiment, lambda files: 1 << 40)  # so many that every training has checkpoints
    if _needed(experiment, workdir, size, most) <= free:
        return None
    needed = _needed(experiment, workdir, size, counts(experiment, lambda files: count_records(files, [])))
    if needed <= free:
        return None
    return (
        f"{free / 1e9:,.1f} GB are free on the disk of {workdir}, less than the {needed / 1e9:,.1f} GB that are needed "
        "at least (weights that stay, and the largest training with its checkpoint): free some, choose another "
        "--workdir, or write less (`keep_proxies: none`, `proxies: lora`, `save_strategy: no`)"
    )


def _needed(experiment: Experiment, workdir: Path, size: float, found: Counts) -> float:
    """Bytes for the models that are not done, one at a time."""
    whole = sum(sizes["whole"] for sizes in found.train.values())
    kept, peaks = 0.0, [0.0]
    for model in models(experiment):
        if model.data and not Layout(workdir).done(model.name).exists():
            stage, samples = ("finals", whole) if model.equal_steps else (model.stage, found.samples(model))
            stays, peak = disk_bytes(experiment, model, size, optimizer_steps(experiment, stage, samples))
            kept += stays
            peaks.append(peak - stays)
    return kept + max(peaks)
