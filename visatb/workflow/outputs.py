"""Which files a step of a job makes; how they stood when it was done is noted by `visatb.workdir.outputs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llava.train.marks import BASE_MODEL
from visatb.experiment.names import SPLITS
from visatb.workdir.layout import Layout
from visatb.workdir.state import Step
from visatb.workflow.jobs import Job


def made(layout: Layout, job: Job, step: Step) -> list[Path]:
    """The files that a step of a job has made, those of them that are there."""
    model = job.model.name if job.model else ""
    found: Iterable[Path] = ()
    if step.kind == "subsets":
        folders = (layout.data, *map(layout.question_folder, SPLITS))
        found = (file for folder in folders for file in folder.glob("*.json"))
    elif step.kind == "train":
        found = model_files(layout.model(model))
    elif step.kind == "answer" and step.split:
        found = layout.answer_folder(step.split, model).rglob("*")
    elif step.kind == "score" and step.split and job.model:
        tasks = job.model.asked[step.split]
        found = (path(step.split, task, model) for task in tasks for path in (layout.score, layout.per_sample))
    elif step.kind == "report":
        found = layout.report.parent.rglob("*")
    elif step.kind in _NAMED:
        found = _NAMED[step.kind](layout)
    return sorted(file for file in found if file.is_file())


_NAMED: dict[str, Callable[[Layout], tuple[Path, ...]]] = {
    "represent": lambda layout: (layout.representations,),
    "weights": lambda layout: (layout.weights, layout.matrix),
    "results": lambda layout: (layout.results, layout.cost),
}


def model_files(folder: Path) -> Iterator[Path]:
    """The files of a trained model; checkpoints, and logs for other programs, are not among them."""
    yield from folder.glob("*")
    yield from (folder / BASE_MODEL).rglob("*")
