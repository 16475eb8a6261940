"""The experiment file: its schema, its defaults, and what must hold between its parts (docs/experiment.md).

Errors name the file and the line. Paths in the file are relative to its own folder (data files to `data_folder`, if
that is given); once loaded they are absolute.
"""

from __future__ import annotations

import difflib
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from visatb.layout import safe
from visatb.yaml_lines import Document, ExperimentError, Place, read

METHODS = ("VisATB", "EW", "TLA", "RLW", "DWA", "IGB", "STL")
# The settings that LLaVA-v1.5 and the paper train with, as far as they decide results.
TRAINING_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "model_max_length": 2048,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 1,
    "report_to": "none",
}
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


def _rate(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{value!r} is not a rate such as 0.25 or 1/4") from error
    return value


def _parameters(value: Any) -> Any:
    """7B → 7e9."""
    units = {"K": 1e3, "M": 1e6, "B": 1e9}
    if isinstance(value, str) and value[-1:].upper() in units:
        try:
            return float(value[:-1]) * units[value[-1:].upper()]
        except ValueError as error:
            raise ValueError(f"{value!r} is not a number of parameters such as 7B") from error
    return value


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Rate = Annotated[float, BeforeValidator(_rate), Field(gt=0, le=1)]
Strings = Annotated[list[str], BeforeValidator(_list), Field(min_length=1)]
Argument = bool | int | float | str | list[int | float | str] | dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True, protected_namespaces=())


class Model(_Part):
    """The model that every run starts from: a saved checkpoint, or the parts of a LLaVA."""

    path: str
    family: str | None = None
    vision_tower: str | None = None
    projector: str | None = None
    template: str | None = None
    parameters: Annotated[float, BeforeValidator(_parameters), Field(gt=0)] | None = None


class Task(_Part):
    """A task's files and metrics. `weight` fixes its weight: it then has training data only."""

    train: Strings
    val: str | None = None
    test: str | None = None
    metric: Annotated[list[str], BeforeValidator(_list)] = []
    group: str | None = None
    weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    score: str | None = None


class Subsets(_Part):
    """Sampling rates, both of a task's whole training data; the mini subset lies in the large one."""

    large: Rate = 1.0
    mini: Rate = 1 / 32
    seed: int = 0


class Alpha(_Part):
    """Shares of the three weight components (Eq. 8)."""

    out: float = Field(default=0.25, ge=0)
    in_: float = Field(default=0.25, ge=0, alias="in")
    difficulty: float = Field(default=0.5, ge=0)

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Weighting(_Part):
    """How λ is computed from the validation matrix; the arguments of weighting_visatb.py."""

    form: Literal["standard", "simple"] = "standard"
    difficulty: Literal["real", "precise"] = "real"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = 0.5
    alpha: Alpha = Alpha()
    on_degenerate: Literal["error", "drop", "clip"] = "error"
    bootstrap: int = Field(default=1000, ge=0)


class Generation(_Part):
    """How questions are answered; the arguments of inference_visatb.py."""

    batch_size: int | Literal["auto"] = "auto"
    max_new_tokens: int = Field(default=1024, gt=0)
    temperature: float = Field(default=0, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    num_beams: int = Field(default=1, ge=1)


class Launcher(_Part):
    """How a job is started on one machine. `gpus_per_job` counts where there are GPUs, `processes` where not or 0."""

    kind: Literal["torchrun", "deepspeed"] = "torchrun"
    gpus_per_job: Annotated[int, Field(ge=0)] | Literal["all"] = 1
    processes: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)


class Experiment(_Part):
    """A whole experiment, checked. `source` is the file that it was read from."""

    source: Path = Field(exclude=True)
    name: str
    model: Model
    tasks: dict[str, Task] = Field(min_length=1)
    grouping: Literal["auto"] | Annotated[int, Field(ge=2)] | None = Field(default=None, alias="groups")
    image_folder: str | None = None
    subsets: Subsets = Subsets()
    weighting: Weighting = Weighting()
    methods: list[Literal["VisATB", "EW", "TLA", "RLW", "DWA", "IGB", "STL"]] = ["EW", "VisATB"]
    stl_steps: Literal["epoch", "equal"] = "epoch"
    max_val_samples: int | None = Field(default=None, gt=0)
    proxies: Literal["full", "lora"] = "full"
    keep_proxies: Literal["none", "weights", "all"] = "none"
    seed: int = 42
    global_batch_size: int = Field(default=128, gt=0)
    training: dict[str, Argument] = {}
    overrides: dict[Literal["proxies", "finals", "stl"], dict[str, Argument]] = {}
    generation: Generation = Generation()
    launcher: Launcher = Launcher()

    @property
    def balanced(self) -> list[str]:
        """The tasks whose weights are computed (those without a fixed weight), in order."""
        return [name for name, task in self.tasks.items() if task.weight is None]

    @property
    def fixed(self) -> dict[str, float]:
        """The tasks of fixed weight."""
        return {name: task.weight for name, task in self.tasks.items() if task.weight is not None}

    @property
    def groups(self) -> dict[str, list[str]] | None:
        """Group → its tasks in order, a task without one being its own; None where no task has a group."""
        if not any(task.group for task in self.tasks.values()):
            return None
        groups: dict[str, list[str]] = {}
        for name in self.balanced:
            groups.setdefault(self.tasks[name].group or name, []).append(name)
        return groups

    @property
    def units(self) -> dict[str, list[str]]:
        """The N weighting units: groups where there are any, else each task by itself."""
        return self.groups or {name: [name] for name in self.balanced}

    def with_groups(self, groups: Mapping[str, Sequence[str]]) -> Experiment:
        """The experiment with these groups in place of `groups: auto`; a group of one is no group."""
        group_of = {task: name for name, members in groups.items() if len(members) > 1 for task in members}
        tasks = {
            name: task.model_copy(update={"group": group_of[name]}) if name in group_of else task
            for name, task in self.tasks.items()
        }
        return self.model_copy(update={"tasks": tasks, "grouping": None})

    def to_yaml(self) -> str:
        """The experiment file with every default written out."""
        content = self.model_dump(mode="json", by_alias=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


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
    try:
        experiment = Experiment.model_validate({**content, "source": Path(path)})
    except ValidationError as error:
        raise ExperimentError("\n".join(_schema_errors(document, error))) from None
    problems = [str(document.error(place, text)) for place, text in _problems(experiment)]
    if problems:
        raise ExperimentError("\n".join(problems))
    return _resolved(experiment, Path(path).resolve().parent, data_folder)


def _schema_errors(document: Document, error: ValidationError) -> Iterator[str]:
    """One line per place that is wrong; a union's branches count as one."""
    named: dict[Place, list[str]] = {}
    for detail in error.errors():
        place = _real_place(document, detail["loc"], detail["type"])
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
    return f"{message[:1].lower()}{message[1:]} (found {detail['input']!r})"


def _known_names(place: Place) -> list[str]:
    parts: dict[Place, type[BaseModel]] = {
        (): Experiment,
        ("model",): Model,
        ("subsets",): Subsets,
        ("weighting",): Weighting,
        ("weighting", "alpha"): Alpha,
        ("generation",): Generation,
        ("launcher",): Launcher,
    }
    part = Task if len(place) == 2 and place[0] == "tasks" else parts.get(place, Experiment)
    names = [field.alias or name for name, field in part.model_fields.items() if name != "source"]
    return [*names, "data_folder"] if part is Experiment else names


def _problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    """What is wrong between the values of an experiment."""
    yield from _task_problems(experiment)
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
    yield from _grouping_problems(experiment)
    repeated = [name for name, count in Counter(experiment.methods).items() if count > 1]
    if repeated:
        yield ("methods",), f"{', '.join(repeated)} named more than once"


def _grouping_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    if experiment.grouping is None:
        return
    if any(task.group for task in experiment.tasks.values()):
        yield ("groups",), "tasks have groups of their own: give either those or this"
    if experiment.weighting.form == "simple":
        yield ("groups",), "are found by the mini model, which the simple form does not train: give each task its group"
    most = len(experiment.balanced) - 1
    if most < 2 or (experiment.grouping != "auto" and experiment.grouping > most):
        yield (
            ("groups",),
            f"{len(experiment.balanced)} tasks make 2 to {most} groups" if most > 1 else "needs three tasks",
        )


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
    for name in [*experiment.tasks, *sorted(groups - set(experiment.tasks))]:
        place: Place = ("tasks", name)
        if not name.strip() or "," in name or "=" in name or ":" in name or name != name.strip():
            yield place, "a name may hold no comma, colon or equals sign, and no space at its ends"
        other = taken.setdefault(safe(name).lower(), name)
        if other != name:
            yield place, f"{name!r} and {other!r} would share their files: choose names that differ more"


def _training_problems(experiment: Experiment) -> Iterator[tuple[Place, str]]:
    places: list[tuple[Place, dict[str, Argument]]] = [(("training",), experiment.training)]
    places += [(("overrides", stage), arguments) for stage, arguments in experiment.overrides.items()]
    for place, arguments in places:
        for name in arguments:
            if name.startswith("-"):
                yield (*place, name), f"write {name.lstrip('-')}, without dashes"
            elif name in OWN_ARGUMENTS:
                yield (*place, name), f"is set by the workflow itself; see `{OWN_ARGUMENTS[name]}`"
            elif name == "seed":
                yield (*place, name), "the seed of all runs stands at the top level: `seed`"
    micro = experiment.training.get("per_device_train_batch_size")
    if micro is not None and not (isinstance(micro, int) and micro > 0):
        yield ("training", "per_device_train_batch_size"), f"must be a positive whole number, not {micro!r}"


def _resolved(experiment: Experiment, folder: Path, data_folder: str) -> Experiment:
    data = folder / data_folder

    def absolute(name: str | None) -> str | None:
        return None if name is None else os.path.abspath(data / os.path.expanduser(name))

    def part(name: str | None) -> str | None:
        """A folder or file if it is one, else a name on the Hugging Face hub."""
        if name is None:
            return None
        local = folder / os.path.expanduser(name)
        return os.path.abspath(local) if local.exists() or name.startswith((".", "/", "~")) else name

    tasks = {
        name: task.model_copy(
            update={
                "train": [absolute(file) for file in task.train],
                **{key: absolute(getattr(task, key)) for key in ("val", "test", "score")},
            }
        )
        for name, task in experiment.tasks.items()
    }
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
        "model": model.model_copy(update=parts),
        "image_folder": absolute(experiment.image_folder),
    }
    return experiment.model_copy(update=update)


def _is_path(value: Argument) -> bool:
    return isinstance(value, str) and value.startswith(("./", "../", "~/"))


def training_arguments(experiment: Experiment, stage: str) -> dict[str, Argument]:
    """The train command's arguments of a stage ("proxies", "finals", "stl"): the common ones under its own."""
    lora: dict[str, Argument] = {"lora_enable": True} if stage == "proxies" and experiment.proxies == "lora" else {}
    stage_arguments = dict(experiment.overrides.items()).get(stage, {})  # type: ignore[call-overload]
    return {**experiment.training, **lora, **stage_arguments}


def round_to_count(rate: float, total: int) -> int:
    """The size of a subset: at least one record."""
    return max(1, min(total, math.floor(rate * total + 0.5)))
