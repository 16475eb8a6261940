"""Reading an experiment file: what must hold within and between its parts (docs/experiment.md).

Errors name the file and the line. Paths in the file are relative to its own folder (data files to `data_folder`, if
that is given); once loaded they are absolute.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from eval.answers import safe_name
from eval.repeats import split_repeat
from visatb.experiment.models import proxies
from visatb.experiment.schema import (
    Alpha,
    Argument,
    Experiment,
    Generation,
    Launcher,
    Model,
    Repeats,
    SubsetRates,
    Task,
    Weighting,
)
from visatb.experiment.training import TRAINING_DEFAULTS, training_arguments
from visatb.experiment.yaml_lines import Document, ExperimentError, Place, read

# What the workflow itself gives to the train command.
OWN_ARGUMENTS = {
    "output_dir": "the work folder",
    "data_path": "tasks",
    "file_tasks": "tasks",
    "task_names": "tasks",
    "num_tasks": "tasks",
    "task_groups": "group, at a task",
    "visatb_weights": "weighting",
    "weight_method": "methods",
    "apply_weights": "weighting.apply",
    "image_folder": "image_folder",
    "model_name_or_path": "model",
    "vision_tower": "model.vision_tower",
    "pretrain_mm_mlp_adapter": "model.projector",
    "version": "model.template",
    "index_cache_dir": "the work folder",
    "overwrite_output_dir": "the work folder",
    "resume_from_checkpoint": "the work folder",
    "gradient_accumulation_steps": "global_batch_size",
}

# What the name of a secret ends in: hub_token, WANDB_API_KEY, db-password.
_SECRET = re.compile(r"(?:^|[^a-z]|api)(?:token|key|password|passwd|secret|credential)s?$", re.IGNORECASE)


def load_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read and check an experiment file.

    Raises:
        ExperimentError: it is not as it should be; all that is wrong with single values is named at once.
    """
    document = read(Path(path))
    content = document.content
    if not isinstance(content, dict):
        raise document.error((), "an experiment file holds names and values (see docs/experiment.md)")
    content = dict(content)
    data_folder = content.pop("data_folder", ".")
    if not isinstance(data_folder, str):
        raise document.error(("data_folder",), "must be a folder")
    content.setdefault("name", Path(path).stem)
    content = _guards_apart(content, document)
    try:
        experiment = Experiment.model_validate({**content, "source": Path(path)})
    except ValidationError as error:
        raise ExperimentError("\n".join(_schema_errors(document, error))) from None
    problems = [str(document.error(place, text)) for place, text in _problems(experiment)]
    if problems:
        raise ExperimentError("\n".join(problems))
    return _resolved(experiment, Path(path).resolve().parent, data_folder)


def _guards_apart(content: dict[str, Any], document: Document) -> dict[str, Any]:
    """The content with guards apart, under `guards`; ExperimentError where one has more than a guard has."""
    if "guards" in content:
        raise document.error(("guards",), "a guard stands among the tasks: tasks.NAME.guard, with val and metric")
    tasks = content.get("tasks")
    if not isinstance(tasks, dict):
        return content
    guards = {name: task for name, task in tasks.items() if isinstance(task, dict) and task.get("guard") is not None}
    for name, task in guards.items():
        for other in ("train", "test", "weight", "group", "score"):
            if task.get(other) is not None:
                text = f"{name} is a guard, which has val and metric only: leave {other} out, or guard"
                raise document.error(("tasks", name, other), text)
    rest = {name: task for name, task in tasks.items() if name not in guards}
    return {**content, "tasks": rest, "guards": guards}


def _schema_errors(document: Document, error: ValidationError) -> Iterator[str]:
    """One line per place that is wrong; a union's branches count as one."""
    named: dict[Place, list[str]] = {}
    for detail in error.errors():
        loc = ("tasks", *detail["loc"][1:]) if detail["loc"][:1] == ("guards",) else detail["loc"]
        place = _real_place(document, loc, detail["type"])
        named.setdefault(place, []).append(_in_words(detail, document, place))
    for place, texts in named.items():
        yield str(document.error(place, " or ".join(dict.fromkeys(texts))))


def _real_place(document: Document, place: Place, kind: str) -> Place:
    """`place` without the names of union branches that pydantic puts at its end."""
    if kind == "missing":
        return place
    while len(place) > 1 and place not in document.lines:
        place = place[:-1]
    return place


def _in_words(detail: Any, document: Document, place: Place) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _known_names(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        return f"unknown name{f'; did you mean {near[0]}?' if near else ''} (known here: {', '.join(known)})"
    if kind == "missing":
        return "is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    found = repr(detail["input"])
    shown = found if len(found) <= 200 else f"{found[:200]}…"
    return f"{message[:1].lower()}{message[1:]} (found {shown})"


def _known_names(place: Place) -> list[str]:
    parts: dict[Place, type[BaseModel]] = {
        (): Experiment,
        ("model",): Model,
        ("subsets",): SubsetRates,
        ("weighting",): Weighting,
        ("weighting", "alpha"): Alpha,
        ("generation",): Generation,
        ("repeats",): Repeats,
        ("launcher",): Launcher,
    }
    part = Task if len(place) == 2 and place[0] == "tasks" else parts.get(place, Experiment)
    names = [field.alias or name for name, field in part.model_fields.items() if name not in ("source", "guards")]
    names += ["guard"] if part is Task else []
    return [*names, "data_folder"] if part is Experiment else names


def _problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    """What is wrong between the values of an experiment."""
    yield from _task_problems(experiment)
    yield from _guard_problems(experiment)
    yield from _name_problems(experiment)
    yield from _training_problems(experiment)
    if len(experiment.units) < 2:
        yield (
            ("tasks",),
            f"weights need at least two tasks or groups beside the fixed ones, not {len(experiment.units)}",
        )
    if experiment.subsets.mini >= experiment.subsets.large:
        yield ("subsets", "mini"), "the mini subsets must be smaller than the large ones"
    alpha = experiment.weighting.alpha
    if abs(alpha.out + alpha.in_ + alpha.difficulty - 1) > 0.02:
        yield ("weighting", "alpha"), "out, in and difficulty must sum to 1"
    if experiment.weighting.form == "simple" and experiment.weighting.difficulty == "precise":
        yield ("weighting", "difficulty"), "the simple form has precise difficulties in itself: leave it out"
    if experiment.weighting.shrink == "auto" and not experiment.weighting.bootstrap:
        yield ("weighting", "shrink"), "auto needs draws that tell the noise: leave weighting.bootstrap above 0"
    if experiment.weighting.apply == "sampling":
        yield from _sampling_problems(experiment)
    yield from _grouping_problems(experiment)
    yield from _repeat_problems(experiment)
    repeated = [name for name, count in Counter(experiment.methods).items() if count > 1]
    if repeated:
        yield ("methods",), f"{', '.join(repeated)} named more than once"


def _sampling_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    """What the train command would refuse for VisATB's model, after all proxies."""
    place: Place = ("weighting", "apply")
    if "VisATB" not in experiment.methods:
        yield place, "sampling concerns the model of VisATB, which is not among the methods: leave it out"
    finals = {name: str(value).lower() for name, value in training_arguments(experiment, "finals").items()}
    if finals.get("group_by_modality_length", "false") not in ("false", "0", "no"):
        yield place, "sampling draws the samples itself: leave group_by_modality_length out of the final runs' training"
    if finals.get("loss_norm", "step") != "step":
        yield place, "sampling is right for the mean over a whole step: leave loss_norm out of the final runs' training"


def _grouping_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    if experiment.grouping is None:
        return
    if any(task.group for task in experiment.tasks.values()):
        yield ("groups",), "tasks have groups of their own: give either those or this"
    if experiment.weighting.form == "simple":
        yield ("groups",), "are found by the mini model, which the simple form does not train: give each task its group"
    most = len(experiment.balanced) - 1
    if most < 2:
        yield ("groups",), f"three tasks and more can be grouped, not {most + 1}"
    elif experiment.grouping != "auto" and experiment.grouping > most:
        yield ("groups",), f"{most + 1} tasks make 2 to {most} groups"


def _repeat_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    """Repeats of models that the form does not train."""
    if isinstance(experiment.repeats.proxies, int):
        return
    kinds = {model.name.partition(":")[0] for model in proxies(experiment.with_groups({})) if model.data}
    known = [kind for kind in ("mini", "plus_mini", "single", "single_mini") if kind in kinds]
    for kind in experiment.repeats.proxies:
        if kind not in kinds:
            yield ("repeats", "proxies", kind), f"these settings train no such model (but {', '.join(known)})"


def _task_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    from eval.metrics import METRICS

    for name, task in experiment.tasks.items():
        place: Place = ("tasks", name)
        if task.weight is not None:
            for other in ("val", "test", "score", "group"):
                if getattr(task, other) is not None:
                    yield (*place, other), "a task of fixed weight has training data only"
            continue
        if task.val is None:
            yield place, "val is missing: λ comes from validation (or give the task a fixed weight)"
        if not task.metric:
            yield place, f"metric is missing (known: {', '.join(METRICS)})"
        if experiment.methods and task.test is None and task.score is None:
            yield place, "test is missing: the methods are compared on it (or `methods: []` to stop at the weights)"
        for metric in task.metric:
            if metric not in METRICS:
                yield (*place, "metric"), f"unknown metric {metric!r}; known: {', '.join(METRICS)}"
        if "loss" in task.metric:
            yield (
                (*place, "metric"),
                "answers have no loss; `weighting: {validation: loss}` validates by it",
            )


def _guard_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    from eval.metrics import METRICS

    for name, guard in experiment.guards.items():
        for metric in guard.metric:
            if metric not in METRICS or metric == "loss":
                yield ("tasks", name, "metric"), f"unknown metric {metric!r}; known: {', '.join(METRICS)}"


def _name_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    """Names that are no names, or not different ones on disk."""
    groups = {task.group for task in experiment.tasks.values() if task.group}
    for group in sorted(groups & set(experiment.tasks)):
        yield ("tasks", group), "is both a task and a group"
    files = Counter(file for task in experiment.tasks.values() for file in task.train)
    for name, task in experiment.tasks.items():
        for file in task.train:
            if files[file] > 1:
                yield ("tasks", name, "train"), f"{file} is named more than once: part the file by task"
    taken: dict[str, str] = {}
    for name in [*experiment.tasks, *experiment.guards, *sorted(groups - set(experiment.tasks))]:
        place: Place = ("tasks", name)
        if not name.strip() or "," in name or "=" in name or ":" in name or name != name.strip():
            yield place, "a name may hold no comma, colon or equals sign, and no space at its ends"
        if split_repeat(name)[1] > 1:
            yield place, "a name may not end in # and a number: `mini#2` is the second training of `mini`"
        other = taken.setdefault(safe_name(name).lower(), name)
        if other != name:
            yield place, f"{name!r} and {other!r} would share their files: choose names that differ more"


def _training_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    places: list[tuple[Place, dict[str, Argument]]] = [(("training",), experiment.training)]
    places += [(("overrides", stage), arguments) for stage, arguments in experiment.overrides.items()]
    for place, arguments in places:
        for name in arguments:
            if name.startswith("-"):
                yield (*place, name), f"write {name.lstrip('-')}, without dashes"
            elif secret := _secret_in(name, arguments[name]):
                variable = "HF_TOKEN" if "hub" in secret or "hf" in secret else "its environment variable"
                yield (
                    (*place, name),
                    f"{secret} is a secret, and this file is copied to the work folder, its logs and its report: "
                    f"remove it here (and revoke it if the file was shared), and set {variable} in the environment",
                )
            elif name in OWN_ARGUMENTS:
                yield (*place, name), f"is set by the workflow itself; see `{OWN_ARGUMENTS[name]}`"
            elif name == "seed":
                yield (*place, name), "the seed of all runs stands at the top level: `seed`"
    micro = experiment.training.get("per_device_train_batch_size")
    if micro is not None and not (isinstance(micro, int) and micro > 0):
        yield ("training", "per_device_train_batch_size"), f"must be a positive whole number, not {micro!r}"


def _secret_in(name: str, value: Any) -> str | None:
    """The name of a secret that an argument gives: itself, or one within it."""
    if isinstance(value, dict):
        return next((found for key, inner in value.items() if (found := _secret_in(str(key), inner))), None)
    if isinstance(value, list):
        return next((found for inner in value if (found := _secret_in("", inner))), None)
    named = _SECRET.search(name) and isinstance(value, str) and value
    return name if named else None


def _resolved(experiment: Experiment, folder: Path, data_folder: str) -> Experiment:
    data = folder / data_folder

    def absolute(name: str | None) -> str | None:
        return None if name is None else os.path.abspath(data / os.path.expanduser(name))

    def part(name: str | None) -> str | None:
        """A folder or file if it is one, else a name on the Hugging Face hub."""
        if name is None:
            return None
        local = folder / os.path.expanduser(name)
        return os.path.abspath(local) if os.path.exists(local) or name.startswith((".", "/", "~")) else name

    tasks = {
        name: task.model_copy(
            update={
                "train": [absolute(file) for file in task.train],
                "val": absolute(task.val),
                "test": absolute(task.test),
                "score": absolute(task.score),
            }
        )
        for name, task in experiment.tasks.items()
    }
    guards = {name: guard.model_copy(update={"val": absolute(guard.val)}) for name, guard in experiment.guards.items()}
    model = experiment.model
    parts = {key: part(getattr(model, key)) for key in ("path", "vision_tower", "projector")}
    defaults = dict(TRAINING_DEFAULTS)
    if "warmup_steps" in experiment.training:
        del defaults["warmup_ratio"]

    def arguments(given: dict[str, Argument]) -> dict[str, Argument]:
        """The same with paths made absolute (a DeepSpeed configuration's, say)."""
        return {name: part(value) if _is_path(value) else value for name, value in given.items()}  # type: ignore

    update = {
        "training": arguments({**defaults, **experiment.training}),
        "overrides": {stage: arguments(given) for stage, given in experiment.overrides.items()},
        "tasks": tasks,
        "guards": guards,
        "model": model.model_copy(update=parts),
        "image_folder": absolute(experiment.image_folder),
    }
    return experiment.model_copy(update=update)


def _is_path(value: Argument) -> bool:
    return isinstance(value, str) and value.startswith(("./", "../", "~/"))
