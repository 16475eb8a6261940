"""`visatb init`: draft an experiment file from a folder of LLaVA JSON files.

Files are told apart by their names, `{task}_{train|val|test}-{size}.json` (the size may be missing); a task's metric is
guessed from its truths, and the subsets' rates and the batch follow from the number of its records (sizes.py).
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from eval.metrics import parse_box
from eval.names import NAMED
from llava.data.errors import DataError
from llava.data.records import image_paths, read_records
from visatb.experiment import records
from visatb.experiment.null import PARTS, Files, split_at_random
from visatb.experiment.sizes import choose_sizes, longest_sequence
from visatb.experiment.yaml_lines import ExperimentError

_NAME = re.compile(rf"{NAMED}(?:-[^_]+)?\.jsonl?")
_LOOKED_AT = 50
_LONG_ANSWER = 5  # words, on average: above it a caption, below it an answer to be matched

_HEAD = """\
# An experiment of VisATB, drafted by `visatb init`. Look through it, then:
#   visatb validate {name}    checks all data and settings
#   visatb plan {name}        what it will run, and what that costs
#   visatb run {name}         runs it, or what is left of it
# Every setting is explained in docs/experiment.md.

model:
  path: {model} # an image-text model (docs/models.md), or a language model (then vision_tower and projector, too)
"""
_TAIL = """
subsets: # both rates are of a task's whole training data; the mini subset lies in the large one
  large: {sizes.large} # {sizes.why_large}
  mini: {sizes.mini} # {sizes.why_mini}

weighting:
  temperature: 0.5 # lower: weights further apart; auto: the lowest that keeps them within 0.5 to 2.0

methods: [EW, VisATB] # add STL for ΔI and ΔE relative to single-task learning (one more run a task)
# repeats: {{proxies: {{mini: 3}}, finals: 3}} # train models several times, and see what chance does to λ and verdicts

global_batch_size: {sizes.batch} # {sizes.why_batch}
training: # any argument of `visatb train`
  learning_rate: 2e-5
  num_train_epochs: 1
  model_max_length: {length} # {why_length}
  # for a 7B model on GPUs of 80 GB, with gpus_per_job: 8 below
  # bf16: true
  # gradient_checkpointing: true
  # deepspeed: scripts_visatb/zero3.json # relative to this file

launcher:
  gpus_per_job: 1 # or all; without GPUs: processes
"""
_NULL = """\
# This is a null experiment: {task} of {folder}, split at random (seed {seed}) into {parts} tasks that differ by
# chance alone. λ must be 1 and ΔI 0 but for noise: what this run shows beyond that is the noise of a run of this size.
#
"""


def draft(
    folder: Path, output: Path, model: str, image_folder: Path | None = None, null: str | None = None, seed: int = 0
) -> str:
    """The text of an experiment file at `output` for the data in `folder`.

    With `null`, a task there: its null experiment, whose data are written into a folder named like `output`, beside it.

    Raises:
        ExperimentError: no file there has such a name, a task lacks training data, or `null` is none or has too little.
        DataError: a file is no LLaVA JSON.
    """
    found = _find(folder)
    base = output.resolve().parent
    lines = [_HEAD.format(name=output.name, model=_quoted(model))]
    images = image_folder or _image_folder(
        folder, [file for splits in found.values() for file in splits.get("train", [])]
    )
    if null is not None:
        if null not in found:
            raise ExperimentError(f"{folder}: holds no task {null}; its tasks: {', '.join(found)}")
        found = split_at_random(_trained(null, found[null]), null, output.with_suffix(""), seed)
        lines.insert(0, _NULL.format(task=null, folder=_relative(folder, base), seed=seed, parts=PARTS))
    if images is not None:
        lines.append(f"image_folder: {_quoted(_relative(images, base))}\n")
    lines.append("tasks:")
    for task, splits in found.items():
        lines += _task_lines(task, splits, base)
    totals = {task: records.count([str(file) for file in splits["train"]]) for task, splits in found.items()}
    sizes = choose_sizes(totals, [task for task, splits in found.items() if "val" in splits])
    length, why_length = longest_sequence(base / os.path.expanduser(model))
    return "\n".join(lines) + "\n" + _TAIL.format(sizes=sizes, length=length, why_length=why_length)


def _find(folder: Path) -> Files:
    found: Files = {}
    for file in sorted(folder.rglob("*.json*")):
        match = _NAME.fullmatch(file.name)
        if match and not match["kind"]:
            found.setdefault(match["task"], {}).setdefault(match["split"], []).append(file)
    if not found:
        raise ExperimentError(f"{folder}: holds no file named {{task}}_{{train|val|test}}-{{size}}.json")
    return found


def _trained(task: str, splits: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The splits as they are; ExperimentError where there is nothing to train on."""
    if "train" not in splits:
        raise ExperimentError(f"task {task} has {next(iter(splits.values()))[0]}, but no training data ({task}_train…)")
    return splits


def _task_lines(task: str, splits: dict[str, list[Path]], base: Path) -> Iterator[str]:
    splits = _trained(task, splits)
    yield f"  {_quoted(task)}:"
    for split, files in splits.items():
        names = [_quoted(_relative(file, base)) for file in files]
        if split != "train" and len(names) > 1:
            raise ExperimentError(f"task {task} has more than one {split} file: {', '.join(names)}; keep one")
        yield f"    {split}: {names[0] if len(names) == 1 else '[' + ', '.join(names) + ']'}"
    if "val" in splits:
        metric, why = guess_metric(splits["val"][0])
        yield f"    metric: {metric} # {why}"
    else:
        yield "    weight: 1.0 # no validation data, so its weight is fixed"


def guess_metric(file: Path) -> tuple[str, str]:
    """The metric that fits a file's truths, and why."""
    truths = []
    for raw in itertools.islice(read_records(file), _LOOKED_AT):
        truth: Any = raw.content["conversations"][-1].get("value") if isinstance(raw.content, dict) else None
        truths.append(str(truth[0] if isinstance(truth, list) and truth else truth))
    if not truths:
        raise DataError(f"{file}: holds no record")
    if all(parse_box(truth) for truth in truths):
        return "iou", "the answers are boxes"
    words = sum(len(truth.split()) for truth in truths) / len(truths)
    if words > _LONG_ANSWER:
        return "cider", f"the answers are texts of {words:.0f} words"
    return "em", "the answers are short; or cider, gleu, iou, judge"


def _image_folder(folder: Path, files: list[Path]) -> Path | None:
    """The folder that holds the images of the files' first records; where none does, one that is named so."""
    names = [
        name for file in files for raw in itertools.islice(read_records(file), 3) for name in image_paths(raw.content)
    ]
    folders = [folder / "images", folder, folder.parent / "images", folder.parent]
    holding = (path for path in folders if names and all((path / name).is_file() for name in names))
    return next(holding, next((path for path in folders[::2] if path.is_dir()), None))


def _relative(path: Path, base: Path) -> str:
    return os.path.relpath(path.resolve(), base)


def _quoted(text: str) -> str:
    """A text as YAML writes it on one line."""
    return yaml.safe_dump(text, allow_unicode=True, width=10**6).strip().removesuffix("\n...").strip()
