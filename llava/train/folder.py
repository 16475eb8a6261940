"""The output folder of a run: whose it is, whether it is finished, and how results appear in it.

`run_settings.json` is written when a run begins and says whose folder it is; `run_card.json` is written after
everything else and so means that the run is finished. A preempted run leaves `preempted`, a diverged one `diverged`
with the reason in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from eval.files import sync, write_text
from llava.differences import differences
from llava.train.arguments import UsageError
from llava.train.marks import BASE_MODEL, CARD, DIVERGED, PREEMPTED, SETTINGS, WEIGHT_FILES
from llava.train.without_effect import WITHOUT_EFFECT
from transformers_patch.checkpoint import DAMAGED, sync_tree

_SAVING = ".saving"

State = Literal["new", "unfinished", "finished"]

_ADDED = ("vision_modules", "projector_modules", "language_modules")
"""Arguments that earlier versions did not have, and that changed nothing while they were not given."""


def inspect(folder: Path, settings: Mapping[str, Any], overwrite: bool = False) -> State:
    """Find whether `folder` is free, holds this run, or holds something else. Changes nothing.

    Args:
        settings: JSON values that decide the run's result; two runs with the same settings are the same run.
        overwrite: treat another run, or this one where it is finished, as if it were not there. This run's own
            unfinished work counts all the same, so that a requeued job goes on whatever its flags.

    Returns:
        "new", "unfinished" (go on from the last checkpoint) or "finished".

    Raises:
        UsageError: the folder holds another run or other files, and `overwrite` is not set.
    """
    held = _as_written_now(read_json(folder / SETTINGS), settings)
    finished = (folder / CARD).is_file()
    same = held == json.loads(json.dumps(settings))
    if same and not (finished and overwrite):
        return "finished" if finished else "unfinished"
    if overwrite:
        return "new"
    if held is not None:
        raise UsageError(
            f"output folder {folder} holds another run, which differs in {_differences(held, settings)}: "
            "choose another folder, or add --overwrite_output_dir True to replace that run"
        )
    foreign = _foreign(folder)
    if foreign:
        raise UsageError(
            f"output folder {folder} is not empty and not of this program ({', '.join(foreign[:3])}, …): "
            "choose another, or add --overwrite_output_dir True"
        )
    return "new"


def _as_written_now(held: Any, settings: Mapping[str, Any]) -> Any:
    """Settings that an earlier version wrote, in today's form.

    It named the files of `file_tasks` by their paths, and counted arguments that are now known to be without effect;
    `use_cpu` was one of them, and on a CPU `tf32` was not written as it had been given.
    """
    if not isinstance(held, dict):
        return held
    if held.get("use_cpu") and held.get("tf32", True) is None:
        held = {**held, "tf32": settings.get("tf32")}
    held = {name: value for name, value in held.items() if name in settings or name not in WITHOUT_EFFECT}
    held = {name: None for name in _ADDED if name in settings} | held
    with suppress(ValueError, AttributeError):
        if isinstance(held.get("file_tasks"), str):
            held["file_tasks"] = list(json.loads(held["file_tasks"]).values())
    return held


def begin(folder: Path, settings: Mapping[str, Any], state: State) -> None:
    """Make `folder` this run's: where it is new, remove an older run's results and write down the settings."""
    if state == "new":
        _clear(folder)
        write_json(folder / SETTINGS, settings)
    for mark in (PREEMPTED, DIVERGED):
        (folder / mark).unlink(missing_ok=True)


def publish(folder: Path, last: str = "config.json") -> None:
    """Move the files of `saving_folder(folder)` into `folder`, file `last` after the others."""
    saving = saving_folder(folder)
    sync_tree(saving)
    for file in sorted(saving.iterdir(), key=lambda file: file.name == last):
        target = folder / file.name
        if file.name == last:
            sync(folder)  # the others' names come first to the disk too
        if file.is_file():
            file.chmod(0o644)  # safetensors writes 0600, which would keep colleagues from loading the model
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(file, target)
    saving.rmdir()
    sync(folder)


def saving_folder(folder: Path) -> Path:
    """Return where a result is written before `publish` moves it into `folder`."""
    return folder / _SAVING


def read_json(file: Path) -> Any:
    """Return the content of a JSON file, None if there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(f"{file} is not valid JSON: {error}") from error


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; OSError where the folder cannot be written."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _foreign(folder: Path) -> list[str]:
    # A log that the shell redirected into the folder is no other run.
    return sorted(entry.name for entry in folder.iterdir() if entry.suffix != ".log") if folder.is_dir() else []


def _clear(folder: Path) -> None:
    """Remove what a run of ours leaves: marks, checkpoints and weights. Other files stay."""
    for name in (CARD, SETTINGS, PREEMPTED, DIVERGED, "config.json", "trainer_state.json", "skipped_records.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for path in [
        *folder.glob("checkpoint-*"),
        *folder.glob(f"{DAMAGED}checkpoint-*"),
        folder / BASE_MODEL,
        folder / _SAVING,
    ]:
        if path.is_dir():
            shutil.rmtree(path)
    for pattern in (*WEIGHT_FILES, "adapter_config.json"):
        for file in folder.glob(pattern):
            file.unlink()


def _differences(held: Any, wanted: Any) -> str:
    wanted = json.loads(json.dumps(wanted))
    held, wanted = (value if isinstance(value, dict) else {} for value in (held, wanted))
    return differences(held, wanted, sorted({*held, *wanted}))
