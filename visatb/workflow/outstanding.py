"""What is left of a run: the jobs that are still to be done, and whether the groups of tasks are known."""

from __future__ import annotations

import logging

from eval.files import read_json, write_json
from visatb.experiment.groups import group_tasks
from visatb.experiment.models import models
from visatb.experiment.schema import Experiment
from visatb.workdir.hashes import Files
from visatb.workdir.layout import Layout
from visatb.workdir.state import Keys, Steps, is_done
from visatb.workflow.jobs import Job

logger = logging.getLogger(__name__)


def outstanding(layout: Layout, listed: list[Job], keys: Keys) -> list[Job]:
    """The jobs that are still to be run, in order: those not done, and those whose outputs are gone or damaged."""
    files = Files(layout.engine / "hashes.json")
    left = []
    for job in listed:
        lost = Steps(layout, job.name, files).lost(keys[job.name])
        if lost:
            logger.warning("%s: %s; it is made again", job.name, lost)
        if lost or not is_done(layout, job.name, keys):
            left.append(job)
    files.save()
    return left


def is_known(keys: Keys, layout: Layout) -> bool:
    """Whether the work folder holds the representations that these keys, of `groups: auto`, stand for."""
    [step] = [step for step in keys["mini"] if step.kind == "represent"]
    return Steps(layout, "mini").done(step) and layout.representations.is_file()


def resolve(experiment: Experiment, layout: Layout) -> Experiment:
    """The experiment with the groups found; they and their tree are written to `grouping.json`."""
    vectors = read_json(layout.representations)
    [mini] = models(experiment)
    found = group_tasks({task: vectors[task] for task in mini.asked["val"]}, experiment.grouping or "auto")
    write_json(layout.grouping, found)
    return experiment.with_groups(found["groups"])
