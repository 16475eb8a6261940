"""The jobs of an experiment and what comes after what. Pure: nothing is read or written."""

from __future__ import annotations

from dataclasses import dataclass

from visatb.experiment.models import ModelJob, models, proxies
from visatb.experiment.schema import Experiment


@dataclass(frozen=True)
class Job:
    """A node of the workflow: what is done in one go, after other jobs; `phase` is the part of the experiment it is in.

    (A model's `stage` is another thing: which overrides of the training arguments it takes.)
    """

    name: str
    phase: str
    after: tuple[str, ...] = ()
    model: ModelJob | None = None


CHECK, SUBSETS, WEIGHTS, RESULTS, REPORT = "check", "subsets", "weights", "results", "report"


def jobs(experiment: Experiment) -> list[Job]:
    """The workflow's jobs in an order that respects what comes after what."""
    needed = {model.name for model in proxies(experiment)}
    listed = [Job(CHECK, "data"), Job(SUBSETS, "data")]
    everything = models(experiment)
    for model in everything:
        after = (CHECK, SUBSETS, WEIGHTS) if model.method == "VisATB" else (CHECK, SUBSETS)
        listed.append(Job(model.name, "validation" if model.name in needed else "test", after, model))
    if experiment.grouping:
        return listed
    order = {"data": 0, "validation": 1, "weights": 2, "test": 3}
    listed.append(Job(WEIGHTS, "weights", tuple(model.name for model in everything if model.name in needed)))
    listed.sort(key=lambda job: order[job.phase])
    tested = tuple(model.name for model in everything if model.asked["test"] or model.name not in needed)
    listed.append(Job(RESULTS, "results", (*dict.fromkeys((*tested, SUBSETS)),)))
    listed.append(Job(REPORT, "results", (RESULTS, WEIGHTS)))
    return listed
