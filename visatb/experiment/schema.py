"""The experiment file's schema and defaults (docs/experiment.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from eval.repeats import MOST_REPEATS
from transformers_patch.weighter import WEIGHTERS
from visatb.experiment.names import SPLITS, Split


def _rate(value: Any) -> Any:
    if isinstance(value, str):
        try:
            part, _, whole = value.partition("/")
            return float(part) / float(whole or 1)
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


def _method(value: str) -> str:
    known = [*WEIGHTERS, STL]
    if value not in known:
        raise ValueError(f"{value!r} is none of the methods {', '.join(known)}")
    return value


STL = "STL"
"""Single-task learning: no weighting method, a run of its own for each task."""
Method = Annotated[str, AfterValidator(_method)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, BeforeValidator(_rate), Field(gt=0, le=1)]
Strings = Annotated[list[str], BeforeValidator(_list), Field(min_length=1)]
Argument = bool | int | float | str | list[int | float | str] | dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Model(_Part):
    """The model that every run starts from: a saved checkpoint, or the parts of a LLaVA."""

    path: str
    family: str | None = None
    vision_tower: str | None = None
    projector: str | None = None
    template: str | None = None
    parameters: Annotated[float, BeforeValidator(_parameters), Field(gt=0, allow_inf_nan=False)] | None = None


class Task(_Part):
    """A task's files and metrics. `weight` fixes its weight: it then has training data only."""

    train: Strings
    val: str | None = None
    test: str | None = None
    metric: Annotated[list[str], BeforeValidator(_list)] = []
    group: str | None = None
    weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    score: str | None = None

    @property
    def questions(self) -> dict[Split, str | None]:
        """The file of each split's questions, None where there is none."""
        return {"val": self.val, "test": self.test, "guard": None}


class Guard(_Part):
    """A task that has questions only. `guard` is how far its score may fall, in its metric's units."""

    val: str
    metric: Strings
    guard: float = Field(gt=0, allow_inf_nan=False)


class SubsetRates(_Part):
    """Sampling rates, both of a task's whole training data; the mini subset lies in the large one."""

    large: Rate = 1.0
    mini: Rate = 1 / 32
    seed: Seed = 0


Count = Annotated[int, Field(ge=1, le=MOST_REPEATS)]


class Repeats(_Part):
    """How often models are trained, each time with a seed of its own, and with its own subsets if `redraw`."""

    proxies: Count | dict[str, Count] = 1
    finals: Count = 1
    redraw: bool = True

    def of(self, kind: str) -> int:
        """How often a kind of proxy (`mini`, `plus_mini`, …) is trained."""
        return self.proxies if isinstance(self.proxies, int) else self.proxies.get(kind, 1)


class Alpha(_Part):
    """Shares of the three weight components (Eq. 8)."""

    out: float = Field(default=0.25, ge=0)
    in_: float = Field(default=0.25, ge=0, alias="in")
    difficulty: float = Field(default=0.5, ge=0)

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Weighting(_Part):
    """How λ is computed from the validation matrix, the arguments of weighting_visatb.py; and how VisATB applies it."""

    form: Literal["standard", "simple"] = "standard"
    difficulty: Literal["real", "precise"] = "real"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = 0.5
    alpha: Alpha = Alpha()
    on_degenerate: Literal["error", "drop", "clip"] = "error"
    bootstrap: int = Field(default=1000, ge=0)
    shrink: Literal["none", "auto"] = "none"
    validation: Literal["answers", "loss"] = "answers"
    apply: Literal["loss", "sampling"] = "loss"


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
    guards: dict[str, Guard] = {}
    grouping: Literal["auto"] | Annotated[int, Field(ge=2)] | None = Field(default=None, alias="groups")
    image_folder: str | None = None
    subsets: SubsetRates = SubsetRates()
    weighting: Weighting = Weighting()
    methods: list[Method] = ["EW", "VisATB"]
    stl_steps: Literal["epoch", "equal"] = "epoch"
    max_val_samples: int | None = Field(default=None, gt=0)
    proxies: Literal["full", "lora"] = "full"
    keep_proxies: Literal["none", "weights", "all"] = "none"
    repeats: Repeats = Repeats()
    seed: Seed = 42
    global_batch_size: int = Field(default=128, gt=0)
    training: dict[str, Argument] = {}
    overrides: dict[Literal["proxies", "finals", "stl"], dict[str, Argument]] = {}
    generation: Generation = Generation()
    launcher: Launcher = Launcher()

    @property
    def balanced(self) -> list[str]:
        """The tasks whose weights are computed (those without a fixed weight), in order."""
        return [name for name, task in self.tasks.items() if task.weight is None]

    def metrics(self, task: str, split: Split) -> list[str]:
        """What a split's questions of a task are scored by: its metrics, or the loss of the truths (`validation`)."""
        if split == "guard":
            return self.guards[task].metric
        return ["loss"] if self.by_loss(split) else self.tasks[task].metric

    def by_loss(self, split: Split) -> bool:
        """Whether models read the truths of a split's questions, in place of answering them."""
        return split == "val" and self.weighting.validation == "loss"

    def questions(self, task: str, split: Split) -> str | None:
        """The file of a split's questions of a task or guard, None where there is none."""
        return self.guards[task].val if split == "guard" else self.tasks[task].questions[split]

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that this experiment can have questions of."""
        return SPLITS if self.guards else SPLITS[:2]

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

    def training_seed(self, repeat: int) -> int:
        """The seed of all models that are trained for the `repeat`-th time (1, 2, …): `seed`, then the next ones."""
        return (self.seed + repeat - 1) % 2**32

    def draw(self, repeat: int) -> int:
        """Which draw of the subsets (1, 2, …) that repeat is trained on."""
        return repeat if self.repeats.redraw else 1

    def subsets_seed(self, repeat: int) -> int:
        """The seed of that repeat's draw of the subsets: `subsets.seed`, then the next ones."""
        return (self.subsets.seed + self.draw(repeat) - 1) % 2**32

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
        content["tasks"] |= content.pop("guards")  # as they stand in the file that is read
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def round_to_count(rate: float, total: int) -> int:
    """The size of a subset: at least one record."""
    return max(1, min(total, math.floor(rate * total + 0.5)))
