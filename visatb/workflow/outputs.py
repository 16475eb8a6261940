"""What a step has made: which files those are, how they stood when it was done, and whether they still stand so.

A note is `{path relative to the work folder: [bytes, time of change in ns, SHA-256]}`. A file is as noted when its size
and time are, or, where only the time is another (a copied folder), its content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from visatb.experiment.schema import Experiment
from visatb.workdir.layout import SPLITS, Layout
from visatb.workflow.jobs import Job


def made(experiment: Experiment, layout: Layout, job: Job, step: str) -> list[Path]:
    """The files that a step of a job has made, those of them that are there."""
    what, _, split = step.partition(" ")
    model = job.model.name if job.model else ""
    found: Iterable[Path] = ()
    if what == "subsets":
        folders = (layout.data, *map(layout.question_folder, SPLITS))
        found = (file for folder in folders for file in folder.glob("*.json"))
    elif what == "train":
        found = model_files(layout.model(model))
    elif what == "answer":
        found = layout.answer_folder(split, model).rglob("*")
    elif what == "score":
        tasks = getattr(job.model, split)
        found = (path(split, task, model) for task in tasks for path in (layout.score, layout.per_sample))
    elif what == "report":
        found = layout.report.parent.rglob("*")
    elif what in _NAMED:
        found = _NAMED[what](layout)
    return sorted(file for file in found if file.is_file())


_NAMED: dict[str, Callable[[Layout], tuple[Path, ...]]] = {
    "represent": lambda layout: (layout.representations,),
    "weights": lambda layout: (layout.weights, layout.matrix),
    "results": lambda layout: (layout.results, layout.cost),
}


def model_files(folder: Path) -> Iterator[Path]:
    """The files of a trained model; checkpoints, and logs for other programs, are not among them."""
    yield from folder.glob("*")
    yield from (folder / "base_model").rglob("*")
