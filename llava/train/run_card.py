"""What a run was: the settings that decide its result, and the card that it leaves."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from eval.files import sha256
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.tasks import TaskTable, read_mapping
from llava.train.without_effect import with_effect

PACKAGES = ("visatb", "torch", "transformers", "accelerate", "peft", "deepspeed", "datasets", "numpy", "pillow")

_OLDER_NAMES = ("warmup_ratio",)
"""Arguments whose value is moved to that of a newer name when they are parsed."""


def all_arguments(
    model: ModelArguments, data: DataArguments, training: TrainingArguments, tasks: TaskTable
) -> dict[str, Any]:
    """Return every argument by name as JSON values (tokens masked), the weighting method as it was resolved."""
    values = {**dataclasses.asdict(model), **dataclasses.asdict(data), **training.to_dict()}
    return values | {"weight_method": tasks.method}


def run_settings(
    model: ModelArguments,
    data: DataArguments,
    training: TrainingArguments,
    tasks: TaskTable,
    data_files: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return what makes two runs the same run; a run goes on in its folder only while this does not change."""
    arguments = with_effect(all_arguments(model, data, training, tasks))
    settings = {name: value for name, value in sorted(arguments.items()) if name not in _OLDER_NAMES}
    settings["global_batch_size"] = training.samples_per_step
    if data.file_tasks:  # in the order of the data files, wherever these lie
        given = read_mapping(data.file_tasks, "--file_tasks")
        settings["file_tasks"] = [given.get(path, given.get(Path(path).name)) for path in data.data_path]
    if data.apply_weights == "loss":  # as it always was: runs of earlier versions are the same runs
        del settings["apply_weights"]
    settings["tasks"] = dataclasses.asdict(tasks)
    settings["data_sha256"] = [file["sha256"] for file in data_files]
    if training.deepspeed:  # a partitioned optimizer goes on only with the same partition
        stage = training.hf_deepspeed_config.config.get("zero_optimization", {}).get("stage", 0)
        settings["deepspeed"] = {"stage": stage, "world_size": training.world_size}
    return settings


def run_card(arguments: dict[str, Any], settings: dict[str, Any], tasks: TaskTable, **facts: Any) -> dict[str, Any]:
    """Return the card of a finished run: what went in, what it ran on, and `facts` that came out."""
    return {
        "arguments": arguments,
        "settings": settings,
        "tasks": list(tasks.names),
        "weight_method": tasks.method,
        "weights": tasks.task_weights(),
        **facts,
        "versions": versions(),
        "hardware": hardware(),
        "git": git_state(),
    }


def describe_files(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Return path, size in bytes and SHA-256 of each file."""
    return [{"path": path, "bytes": Path(path).stat().st_size, "sha256": sha256(path)} for path in paths]


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """Return the machine's processor, and its GPUs with the CUDA version they run under."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": platform.platform(), "gpus": gpus, "cuda": torch.version.cuda}


def git_state() -> dict[str, Any] | None:
    """Return this program's commit and whether tracked files are changed, None where it runs from no git checkout."""
    here = Path(__file__)

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # else an installed copy inside some other project's checkout
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
