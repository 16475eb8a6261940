"""From an experiment to the models it needs and the jobs that make them. Pure: nothing is read or written.

Standard form: mini, and i+mini for each unit i. Precise difficulty adds single and single_mini of each unit. Simple
form: the base model, single and single_mini of each unit. Then each method's model, and one per task for STL.

With `repeats` a model is there several times, from the second time on as `NAME#2`, `NAME#3`, …. What is trained for the
r-th time has the same seed, whatever model it is: methods can be compared seed by seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from eval.repeats import repeat_name
from visatb.experiment.names import Split
from visatb.experiment.schema import STL, Experiment
from visatb.experiment.training import training_arguments

Size = Literal["mini", "large", "whole"]
Stage = Literal["proxies", "finals", "stl", "base"]
Asked = Mapping[Split, tuple[str, ...]]


def asked(val: Iterable[str] = (), test: Iterable[str] = (), guard: Iterable[str] = ()) -> Asked:
    """The tasks whose questions are asked, by split."""
    return {"val": tuple(val), "test": tuple(test), "guard": tuple(guard)}


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
        repeat: for which time it is trained (1, 2, …); seed and draw of the subsets follow from it.
    """

    name: str
    stage: Stage
    method: str
    data: tuple[tuple[str, Size], ...]
    asked: Asked = field(default_factory=asked)
    equal_steps: bool = False
    represents: bool = False
    repeat: int = 1

    @property
    def tasks(self) -> list[str]:
        """The tasks of its training data."""
        return [task for task, _ in self.data]


def proxies(experiment: Experiment) -> list[ModelJob]:
    """The models that λ is computed from, in the order that they are best trained in.

    Of `groups: auto` only the first mini model, until the groups are known. All first trainings come before the second
    ones, and so on.
    """
    once = _proxies_once(experiment)
    if experiment.grouping:
        return once
    counts = {model.name: _times(experiment, model) for model in once}
    return [
        _again(model, repeat)
        for repeat in range(1, max(counts.values()) + 1)
        for model in once
        if repeat <= counts[model.name]
    ]


def _times(experiment: Experiment, proxy: ModelJob) -> int:
    """How often a proxy is trained; the base model is not trained at all."""
    return experiment.repeats.of(proxy.name.partition(":")[0]) if proxy.data else 1


def _again(model: ModelJob, repeat: int) -> ModelJob:
    return replace(model, name=repeat_name(model.name, repeat), repeat=repeat)


def _proxies_once(experiment: Experiment) -> list[ModelJob]:
    form, units = experiment.weighting.form, experiment.units
    everything = asked(val=experiment.balanced, guard=experiment.guards)
    models = []
    if experiment.grouping:
        return [ModelJob("mini", "proxies", "EW", _mixed(experiment, ()), everything, represents=True)]
    if form == "simple":
        models = [ModelJob("base", "base", "EW", (), everything)]
    else:
        if experiment.guards:  # what a fall is measured from
            models.append(ModelJob("base", "base", "EW", (), asked(guard=experiment.guards)))
        models.append(ModelJob("mini", "proxies", "EW", _mixed(experiment, ()), everything))
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


def stl_model(experiment: Experiment, task: str, repeat: int = 1) -> str:
    """The model that is STL's for a task: `single:<task>` where that is the same run, else `STL:<task>`."""
    single = repeat_name(f"single:{task}", repeat)
    same = (
        experiment.units.get(task) == [task]
        and any(model.name == single for model in proxies(experiment))
        and experiment.subsets.large == 1
        and experiment.stl_steps == "epoch"
        and training_arguments(experiment, "stl") == training_arguments(experiment, "proxies")
    )
    return single if same else repeat_name(f"STL:{task}", repeat)


def models(experiment: Experiment) -> list[ModelJob]:
    """All models of an experiment: proxies first, then the methods' in their order, STL's last."""
    if experiment.grouping:
        return proxies(experiment)
    found = {model.name: model for model in proxies(experiment)}
    for repeat in range(1, experiment.repeats.finals + 1):
        found |= {model.name: model for model in _compared(experiment, repeat, found)}
    return list(found.values())


def _compared(experiment: Experiment, repeat: int, found: Mapping[str, ModelJob]) -> Iterator[ModelJob]:
    """The methods' models, trained for the `repeat`-th time; of `found` those that are STL's, too."""
    tested = [task for task in experiment.balanced if experiment.tasks[task].test]
    whole = _only(experiment.tasks, "whole")
    for method in experiment.methods:
        if method != STL:
            yield _again(ModelJob(method, "finals", method, whole, asked(test=tested)), repeat)
    for task in experiment.balanced if STL in experiment.methods else ():
        name = stl_model(experiment, task, repeat)
        own = [task] if task in tested else []
        if name in found:
            yield replace(found[name], asked={**found[name].asked, "test": tuple(own)})
        elif experiment.tasks[task].score is None or own:
            alone = ModelJob(name, "stl", "EW", _only([task], "whole"), asked(test=own), repeat=repeat)
            yield replace(alone, equal_steps=experiment.stl_steps == "equal")


def _mixed(experiment: Experiment, large: tuple[str, ...] | list[str]) -> tuple[tuple[str, Size], ...]:
    return tuple((task, "large" if task in large else "mini") for task in experiment.tasks)


def _only(tasks: object, size: Size) -> tuple[tuple[str, Size], ...]:
    return tuple((task, size) for task in tasks)  # type: ignore[attr-defined]
