"""The command lines that jobs start: what a user could type."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visatb.experiment.models import ModelJob
from visatb.experiment.names import Split
from visatb.experiment.schema import Argument, Experiment
from visatb.experiment.training import batch_split, optimizer_steps, training_arguments
from visatb.workdir.layout import Layout
from visatb.workdir.subsets import Subsets


@dataclass(frozen=True)
class Command:
    """A module of ours to be run: alone in a process, or in several by a launcher."""

    module: str
    arguments: Sequence[str]
    launcher: Sequence[str] = ()

    @property
    def alone(self) -> bool:
        """Whether it runs in one process, without a launcher."""
        return not self.launcher

    @property
    def words(self) -> list[str]:
        """What a user could type."""
        return [sys.executable, "-m", *self.launcher, self.module, *self.arguments]


@dataclass(frozen=True)
class Launch:
    """How processes are started: how many, by what where there are several, and on which GPUs of the machine."""

    processes: int = 1
    kind: str = "torchrun"
    gpus: tuple[str, ...] = ()

    def command(self, module: str, arguments: Sequence[str]) -> Command:
        """The command that runs a module in all processes."""
        if self.kind == "deepspeed" and module != "inference_visatb":
            # Told a number alone, it takes the machine's first GPUs, and one port for all of its runs.
            gpus = ",".join(self.gpus or map(str, range(self.processes)))
            launcher = ["deepspeed.launcher.runner", "--include", f"localhost:{gpus}"]
            launcher += ["--master_port", str(_free_port()), "--module"]
        elif self.processes > 1:
            launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes), "--module"]
        else:
            launcher = []
        return Command(module, arguments, launcher)


def _free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def model_arguments(experiment: Experiment) -> list[str]:
    """The train command's arguments that say what it starts from."""
    model = experiment.model
    given = {
        "model_name_or_path": model.path,
        "vision_tower": model.vision_tower,
        "pretrain_mm_mlp_adapter": model.projector,
        "version": model.template,
    }
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]


def base_arguments(experiment: Experiment, folder: Path, job: ModelJob) -> list[str]:
    """The command line that makes the base model; with the seed of the models that are trained from it."""
    seed = str(experiment.training_seed(job.repeat))
    return [*model_arguments(experiment), "--seed", seed, "--output_dir", str(folder)]


def train_arguments(
    experiment: Experiment, layout: Layout, job: ModelJob, subsets: Subsets, launch: Launch
) -> list[str]:
    """The train command's arguments for a model."""
    files = subsets.models[job.name].files
    arguments = dict(training_arguments(experiment, job.stage))
    micro, accumulation = batch_split(experiment, arguments, launch.processes)
    arguments |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    if job.equal_steps:
        arguments["max_steps"] = optimizer_steps(experiment, "finals", subsets.whole)
    words = [*model_arguments(experiment), "--output_dir", str(layout.model(job.name))]
    words += ["--data_path", *(file for of_task in files.values() for file in of_task)]
    words += ["--file_tasks", json.dumps({file: task for task, of_task in files.items() for file in of_task})]
    if experiment.image_folder is not None:
        words += ["--image_folder", experiment.image_folder]
    words += ["--task_names", *job.tasks, "--seed", str(experiment.training_seed(job.repeat))]
    words += ["--index_cache_dir", str(layout.data / "index")]
    if job.stage == "finals" and experiment.groups:
        words += ["--task_groups", json.dumps(experiment.groups)]
    words += ["--visatb_weights", str(layout.weights)] if job.method == "VisATB" else ["--weight_method", job.method]
    if job.method == "VisATB" and experiment.weighting.apply != "loss":
        words += ["--apply_weights", experiment.weighting.apply]
    for name, value in arguments.items():
        words += [f"--{name}", *_words(value)]
    return words


def _words(value: Argument) -> list[str]:
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def answer_arguments(
    experiment: Experiment, layout: Layout, job: ModelJob, split: Split, subsets: Subsets, checkpoint: str
) -> list[str]:
    """The inference command's arguments for a model and a split."""
    words = ["--model-path", checkpoint, "--model-name", job.name]
    words += ["--answers-folder", str(layout.answer_folder(split, job.name)), "--question-file"]
    words += subsets.question_files(job, split)
    if experiment.image_folder is not None:
        words += ["--image-folder", experiment.image_folder]
    if experiment.model.template is not None:
        words += ["--conv-mode", experiment.model.template]
    for name, value in experiment.generation.model_dump().items():
        if value is not None:
            words += [f"--{name}", str(value)]
    if experiment.by_loss(split):
        words.append("--truth-loss")
    return words


def represent_arguments(
    experiment: Experiment, layout: Layout, job: ModelJob, subsets: Subsets, checkpoint: str
) -> list[str]:
    """The arguments of llava.infer.represent for a model and its validation questions."""
    words = ["--model-path", checkpoint, "--output", str(layout.representations)]
    words += ["--question-file", *subsets.question_files(job, "val")]
    words += ["--task_names", *job.asked["val"], "--batch-size", str(experiment.generation.batch_size)]
    if experiment.image_folder is not None:
        words += ["--image-folder", experiment.image_folder]
    if experiment.model.template is not None:
        words += ["--conv-mode", experiment.model.template]
    return words


def weighting_arguments(experiment: Experiment, layout: Layout, groups_file: str | None) -> list[str]:
    """The weighting command's arguments."""
    weighting = experiment.weighting
    words = ["--scores", str(layout.root / "scores" / "val"), "--split", "val"]
    words += ["--task_names", *experiment.tasks]
    words += ["--output", str(layout.weights), "--matrix", str(layout.matrix)]
    words += ["--temperature", str(weighting.temperature), "--form", weighting.form]
    words += ["--difficulty", weighting.difficulty, "--on_degenerate", weighting.on_degenerate]
    words += ["--bootstrap", str(weighting.bootstrap), "--shrink", weighting.shrink]
    alpha = weighting.alpha
    words += ["--alpha-out", str(alpha.out), "--alpha-in", str(alpha.in_)]
    words += ["--alpha-difficulty", str(alpha.difficulty)]
    if groups_file is not None:
        words += ["--groups", groups_file]
    if experiment.guards:
        words += ["--guard_scores", str(layout.root / "scores" / "guard")]
    for name, guard in experiment.guards.items():
        words += ["--guard", f"{name}={guard.guard}"]
    for name, weight in experiment.fixed.items():
        words += ["--fixed", f"{name}={weight}"]
    return words
