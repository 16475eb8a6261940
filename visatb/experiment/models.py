"""From an experiment to the models it needs and the jobs that make them. Pure: nothing is read or written.

Standard form: mini, and i+mini for each unit i. Precise difficulty adds single and single_mini of each unit. Simple
form: the base model, single and single_mini of each unit. Then each method's model, and one per task for STL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from visatb.experiment.names import Split
from visatb.experiment.schema import Experiment
from visatb.experiment.training import training_arguments

Size = Literal["mini", "large", "whole"]
Stage = Literal["proxies", "finals", "stl", "base"]
Asked = Mapping[Split, tuple[str, ...]]


def asked(val: Iterable[str] = (), test: Iterable[str] = ()) -> Asked:
    """The tasks whose questions are asked, by split."""
    return {"val": tuple(val), "test": tuple(test)}


@dataclass(frozen=True)
class ModelJob:
    """A model: what it is trained on, and which tasks' questions it answers.

    Attributes:
        stage: which overrides of the training arguments apply; `base` is not trained at all.
        method: the weighting method it is trained with.
        data: (task, size) of each part of its training data, in the order of the tasks.
        asked: the tasks whose questions it answers, by split.
        equal_steps: trained for as many optimizer steps as the final runs take.
        represents: tells how it represents each task, for `groups: auto`.
    """

    name: str
    stage: Stage
    method: str
    data: tuple[tuple[str, Size], ...]
    asked: Asked = field(default_factory=asked)
    equal_steps: bool = False
    represents: bool = False

    @property
    def tasks(self) -> list[str]:
        """The tasks of its training data."""
        return [task for task, _ in self.data]


TOGETHER = ("VisATB", "EW", "TLA", "RLW", "DWA", "IGB")


def proxies(experiment: Experiment) -> list[ModelJob]:
    """The models that λ is computed from, in the order that they are best trained in.

    Of `groups: auto` only the mini model, until the groups are known.
    """
    form, units = experiment.weighting.form, experiment.units
    everything = asked(val=experiment.balanced)
    models = []
    if experiment.grouping:
        return [ModelJob("mini", "proxies", "EW", _mixed(experiment, ()), everything, represents=True)]
    if form == "simple":
        models = [ModelJob("base", "base", "EW", (), everything)]
    else:
        models = [ModelJob("mini", "proxies", "EW", _mixed(experiment, ()), everything)]
        models += [
            ModelJob(f"plus_mini:{unit}", "proxies", "EW", _mixed(experiment, tasks), everything)
            for unit, tasks in units.items()
        ]
    if form == "simple" or experiment.weighting.difficulty == "precise":
        for unit, tasks in units.items():
            own = asked(val=tasks)
            of_single = everything if form == "simple" else own
            models.append(ModelJob(f"single:{unit}", "proxies", "EW", _only(tasks, "large"), of_single))
            models.append(ModelJob(f"single_mini:{unit}", "proxies", "EW", _only(tasks, "mini"), own))
    return models


def stl_model(experiment: Experiment, task: str) -> str:
    """The model that is STL's for a task: `single:<task>` where that is the same run, else `STL:<task>`."""
    single = f"single:{task}"
    same = (
        experiment.units.get(task) == [task]
        and any(model.name == single for model in proxies(experiment))
        and experiment.subsets.large == 1
        and experiment.stl_steps == "epoch"
        and training_arguments(experiment, "stl") == training_arguments(experiment, "proxies")
    )
    return single if same else f"STL:{task}"


def models(experiment: Experiment) -> list[ModelJob]:
    """All models of an experiment: proxies first, then the methods' in their order, STL's last."""
    if experiment.grouping:
        return proxies(experiment)
    tested = [task for task in experiment.balanced if experiment.tasks[task].test]
    found = {model.name: model for model in proxies(experiment)}
    whole = _only(experiment.tasks, "whole")
    for method in experiment.methods:
        if method in TOGETHER:
            found[method] = ModelJob(method, "finals", method, whole, asked(test=tested))
    if "STL" in experiment.methods:
        for task in experiment.balanced:
            name = stl_model(experiment, task)
            own = [task] if task in tested else []
            if name in found:
                found[name] = replace(found[name], asked=asked(found[name].asked["val"], own))
            elif experiment.tasks[task].score is None or own:
                equal = experiment.stl_steps == "equal"
                found[name] = ModelJob(name, "stl", "EW", _only([task], "whole"), asked(test=own), equal_steps=equal)
    return list(found.values())


def _mixed(experiment: Experiment, large: tuple[str, ...] | list[str]) -> tuple[tuple[str, Size], ...]:
    return tuple((task, "large" if task in large else "mini") for task in experiment.tasks)


def _only(tasks: object, size: Size) -> tuple[tuple[str, Size], ...]:
    return tuple((task, size) for task in tasks)  # type: ignore[attr-defined]
