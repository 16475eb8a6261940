"""Doing something once for all ranks."""

from __future__ import annotations

import datetime
import importlib
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist

from llava.train.arguments import UsageError

if TYPE_CHECKING:
    from llava.train.arguments import TrainingArguments

T = TypeVar("T")

# Indexing a million records, or converting a large model, takes longer than the time-out of the training collectives.
_WAIT = datetime.timedelta(hours=24)


def is_main() -> bool:
    """Return whether this is the process that speaks and writes for all (also before distributed set-up)."""
    return int(os.environ.get("RANK", "0")) == 0


def join_deepspeed(training: TrainingArguments) -> None:
    """Let DeepSpeed know of this process's group on a CPU, where transformers does so for GPUs only.

    Without it DeepSpeed takes every rank for the only one.
    """
    if training.deepspeed and training.use_cpu and dist.is_initialized():
        importlib.import_module("deepspeed").init_distributed(dist_backend="gloo")


def run_on_main(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 while the others wait; return its (picklable) result on every rank.

    Raises:
        UsageError: on every rank, where it was raised on rank 0. Any other exception ends the ranks alike.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return function()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = function()
        except Exception as error:
            answer[1] = error if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            raise
        finally:
            dist.broadcast_object_list(answer, src=0, group=_waiting_group())
    else:
        dist.broadcast_object_list(answer, src=0, group=_waiting_group())
    result, failure = answer
    if isinstance(failure, UsageError):
        raise failure
    if failure is not None:
        raise RuntimeError(f"rank 0 failed: {failure}")
    return cast(T, result)


def all_see(file: Path, patience: float = 60.0) -> bool:
    """Whether every rank sees a file that rank 0 has written; asked again for `patience` seconds (file systems lag)."""
    end = time.monotonic() + patience
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.5)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return file.exists()
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, file.exists(), group=_waiting_group())
    return all(seen)


@lru_cache(maxsize=1)
def _waiting_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=_WAIT)
