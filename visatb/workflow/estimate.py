"""What an experiment will run, before it runs: samples, steps, disk and generation time of each model, cost and advice.

Where data files are not there yet, counts come from their names (`…_train-41k.json`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.errors import EvaluationError
from eval.weights import WEIGHT_RANGE, read_weights
from visatb.experiment import records
from visatb.experiment.models import ModelJob, models, proxies
from visatb.experiment.names import SPLITS
from visatb.experiment.schema import Experiment
from visatb.experiment.training import (
    ENOUGH_STEPS,
    LARGE_SAMPLES,
    MINI_SAMPLES,
    optimizer_steps,
    training_arguments,
)
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.contents import read_costs
from visatb.workdir.layout import Layout
from visatb.workdir.subsets import Counts, counts
from visatb.workflow.fit import CARDS, PEAK_SHARE, Card, Fit
from visatb.workflow.training_time import TrainingTime


# What generation time is reckoned with, unless it was measured.
@dataclass(frozen=True)
class Machine:
    """What answers questions: floating-point operations and bytes read, both a second."""

    name: str
    flops: float
    bandwidth: float


CPU = Machine("a CPU at 20 GFLOP/s", 20e9, 10e9)
PROMPT_TOKENS, ANSWER_TOKENS, BATCH = 650, 30, 16


@dataclass(frozen=True)
class ModelPlan:
    """A model's part. `kept_bytes` stay after the run, None where the model's size is not known."""

    name: str
    stage: str
    samples: int
    steps: int
    questions: int
    kept_bytes: float | None
    peak_bytes: float | None
    answer_seconds: float | None
    train_seconds: float | None = None


@dataclass(frozen=True)
class FormCost:
    """What finding λ costs by one form, as a multiple of the final run: counted in samples, and by the formula."""

    name: str
    trainings: int
    counted: float
    formula: str
    by_formula: float


@dataclass(frozen=True)
class Plan:
    """The whole plan."""

    experiment: str
    form: str
    models: list[ModelPlan]
    forms: list[FormCost]
    advice: list[str]
    notes: list[str] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)


def make_plan(experiment: Experiment, workdir: Path | None = None, card: Card | None = None) -> Plan:
    """Plan an experiment; `workdir`'s measurements and weights are used where it has any.

    `card`: the GPU that it is to run on, for memory and time.

    Raises:
        ExperimentError: a data file is not there and its name does not tell how many records it would have, or a
            `card` is given and the model's shape is not known.
    """
    guessed: list[str] = []
    grouping = experiment.grouping
    experiment = experiment.with_groups({})
    found = counts(experiment, lambda files: count_records(files, guessed))
    size = parameters(experiment)
    speed = _measured(workdir) if workdir else None
    machine = _machine(experiment, size, card)
    training = TrainingTime(experiment, workdir, card)
    planned = [
        replace(
            _plan_model(experiment, model, found, size, machine, speed), train_seconds=training.seconds(model, found)
        )
        for model in models(experiment)
    ]
    notes = [*_repeat_notes(experiment), *training.notes()]
    if experiment.weighting.apply == "sampling":
        notes.append("VisATB's model is trained with λ as sampling ratios: an epoch draws some samples several times")
    if grouping:
        notes.append(
            f"groups: {grouping}: found by the mini model; planned as if every task were its own, the most it costs"
        )
    if guessed:
        notes.append(f"{len(guessed)} data files are not there; their sizes are taken from their names")
    if size is None:
        notes.append("the model's size is not known: give model.parameters (such as 7B) for disk and generation time")
    elif speed is None:
        notes.append(f"generation time is reckoned for {machine.name}, {ANSWER_TOKENS} tokens an answer")
    return Plan(
        experiment=experiment.name,
        form=form_name(experiment),
        models=planned,
        forms=list(_forms(experiment, found)),
        advice=list(advice(experiment, found, workdir)),
        notes=notes,
        fits=training.fits(),
    )


def _repeat_notes(experiment: Experiment) -> Iterator[str]:
    """How often models are trained, and with which seeds."""
    repeats = experiment.repeats
    kinds = repeats.proxies
    most = max(repeats.finals, *([kinds] if isinstance(kinds, int) else kinds.values()))
    if most == 1:
        return
    of_kinds = f"{kinds} times" if isinstance(kinds, int) else ", ".join(f"{k} {n} times" for k, n in kinds.items())
    drawn = ", each on its own draw of the subsets" if repeats.redraw else " on the same subsets"
    yield (
        f"repeats: proxies are trained {of_kinds}{drawn}; final runs {repeats.finals} times; "
        f"with the seeds {experiment.seed} to {experiment.training_seed(most)}"
    )


def _machine(experiment: Experiment, size: float | None, card: Card | None) -> Machine:
    if size is not None and size < 2e8 and card is None:
        return CPU
    card = card or CARDS["a100-80"]
    gpus = experiment.launcher.gpus_per_job
    count = max(1, gpus) if isinstance(gpus, int) else 1
    return Machine(
        f"{count} × {card.name} at {PEAK_SHARE:.0%} of the peak and half the bandwidth",
        count * PEAK_SHARE * card.peak,
        count * 0.5 * card.bandwidth,
    )


def form_name(experiment: Experiment) -> str:
    """The form in one word: standard, precise or simple."""
    weighting = experiment.weighting
    return "precise" if weighting.difficulty == "precise" else weighting.form


def count_records(files: list[str], guessed: list[str]) -> int:
    """The records of data files; of those that are not there (put to `guessed`) by their names."""
    missing = [file for file in files if not Path(file).is_file()]
    if not missing:
        return records.count(files)
    known = records.count_by_name(missing)
    if known is None:
        raise ExperimentError(
            f"{missing[0]} does not exist, and its name does not tell how many records it holds (…_train-41k.json)"
        )
    guessed += missing
    return known + records.count([file for file in files if file not in missing])


def parameters(experiment: Experiment) -> float | None:
    """The model's number of parameters: as given, from the checkpoint, or from its name; None if nothing tells."""
    if experiment.model.parameters is not None:
        return experiment.model.parameters
    folder = Path(experiment.model.path)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if files:
        return float(sum(_tensor_elements(file) for file in files))
    match = re.search(r"(\d+(?:\.\d+)?)[bB]\b", folder.name)
    return float(match[1]) * 1e9 if match else None


def _tensor_elements(file: Path) -> int:
    """The number of values in a safetensors file, from its header."""
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _plan_model(
    experiment: Experiment,
    model: ModelJob,
    found: Counts,
    size: float | None,
    machine: Machine,
    speed: float | None,
) -> ModelPlan:
    samples = found.samples(model)
    whole = sum(sizes["whole"] for sizes in found.train.values())
    steps = 0
    if model.data:
        steps = optimizer_steps(experiment, *(("finals", whole) if model.equal_steps else (model.stage, samples)))
    questions = sum(found.asked(model, split) for split in SPLITS)
    kept, peak = disk_bytes(experiment, model, size, steps) if model.data else (0.0, 0.0)
    return ModelPlan(
        name=model.name,
        stage=model.stage,
        samples=samples,
        steps=steps,
        questions=questions,
        kept_bytes=kept if size else None,
        peak_bytes=peak if size else None,
        answer_seconds=questions / speed if speed else _answer_seconds(questions, size, machine),
    )


def disk_bytes(experiment: Experiment, model: ModelJob, size: float | None, steps: int) -> tuple[float, float]:
    """Bytes that stay, and at most while it trains: the weights, and a checkpoint with its optimizer's state."""
    if size is None:
        return 0.0, 0.0
    arguments = training_arguments(experiment, model.stage)
    half = bool(arguments.get("bf16") or arguments.get("fp16")) and "deepspeed" in arguments
    width = 2 if half else 4
    trained = size
    if arguments.get("lora_enable"):
        # LoRA on all linear layers of a 7B model: 320M parameters at rank 128.
        trained = size * 0.046 * float(str(arguments.get("lora_r", 64))) / 128
    weights = trained * width
    checkpoint = weights + trained * 12
    base = size * 2 if experiment.model.vision_tower or experiment.model.projector else 0.0
    peak = base + weights
    if arguments.get("save_strategy") != "no":
        # While a checkpoint is written the one before it is still there; the last step's stands beside the weights.
        several = steps > int(str(arguments.get("save_steps", 500)))
        peak = base + max(2 * checkpoint if several else 0.0, checkpoint + weights)
    dropped = model.stage in ("proxies", "stl") and experiment.keep_proxies == "none"
    return (0.0 if dropped else weights), peak


def _answer_seconds(questions: int, size: float | None, machine: Machine) -> float | None:
    """Reading the prompts is bound by arithmetic, writing answers by reading all weights once a token and batch."""
    if size is None:
        return None
    reading = questions * PROMPT_TOKENS * 2 * size / machine.flops
    writing = math.ceil(questions / BATCH) * ANSWER_TOKENS * 2 * size / machine.bandwidth
    return float(reading + writing)


def _measured(workdir: Path) -> float | None:
    """Questions answered a second, by what this work folder has measured; None before it has."""
    try:
        cost = read_costs(Layout(workdir))
    except EvaluationError:
        return None
    pairs = [(entry.get("questions", 0), entry.get("infer_seconds") or 0) for entry in cost.values()]
    questions, seconds = (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
    return questions / seconds if questions and seconds else None


def _forms(experiment: Experiment, found: Counts) -> Iterator[FormCost]:
    """Each form's cost; the paper's estimate for the standard form is R_large + N·R_mini final runs.

    The mini models have N minis, the N plus_mini models one large subset and N − 1 minis each: with repeats
    r_plus·R_large + (r_plus·N + r_mini − r_plus)·R_mini.
    """
    whole = sum(sizes["whole"] for sizes in found.train.values())
    units, times = len(experiment.units), experiment.repeats.of
    plus, more = times("plus_mini"), times("mini") - times("plus_mini")
    minis = f"({_times(plus, 'N')} {'+' if more > 0 else '−'} {abs(more)})" if more else _times(plus, "N")
    standard = f"{_times(plus, 'R_large')} + {minis}·R_mini", _final_runs(experiment, plus, plus * units + more)
    singles = times("single"), times("single_mini")
    single = f"{_times(singles[0], 'R_large')} + {_times(singles[1], 'R_mini')}", _final_runs(experiment, *singles)
    for name, form, difficulty, (formula, by_formula) in (
        ("standard", "standard", "real", standard),
        ("precise", "standard", "precise", (f"{standard[0]} + ({single[0]})", standard[1] + single[1])),
        ("simple", "simple", "real", single),
    ):
        weighting = experiment.weighting.model_copy(update={"form": form, "difficulty": difficulty})
        listed = [model for model in proxies(experiment.model_copy(update={"weighting": weighting})) if model.data]
        counted = sum(found.samples(model) for model in listed) / whole
        yield FormCost(name, len(listed), counted, formula, by_formula)


def _times(count: int, what: str) -> str:
    return what if count == 1 else f"{count}·{what}"


def _final_runs(experiment: Experiment, large: int, mini: int) -> float:
    """What trainings on so many large and mini subsets of every task cost, in final runs."""
    return large * experiment.subsets.large + mini * experiment.subsets.mini


def advice(experiment: Experiment, found: Counts, workdir: Path | None = None) -> Iterator[str]:
    """Where the experiment goes against the paper's advice."""
    minis = {task: found.train[task]["mini"] for task in experiment.tasks}
    small = [f"{task} ({count:,})" for task, count in minis.items() if count < MINI_SAMPLES]
    if small:
        yield f"mini subsets below {MINI_SAMPLES:,} samples (Appendix B): {', '.join(small)}"
    for model in proxies(experiment):
        steps = optimizer_steps(experiment, model.stage, found.samples(model)) if model.data else ENOUGH_STEPS
        if model.name == "mini" and steps < ENOUGH_STEPS:
            yield f"all mini subsets together give {steps} optimizer steps, below {ENOUGH_STEPS} (Appendix B)"
    for unit, tasks in experiment.units.items():
        samples = sum(found.train[task]["large"] for task in tasks)
        steps = optimizer_steps(experiment, "proxies", samples)
        if samples < LARGE_SAMPLES or steps < ENOUGH_STEPS:
            yield (
                f"large subset of {unit}: {samples:,} samples, {steps} steps; below {LARGE_SAMPLES:,} samples or "
                f"{ENOUGH_STEPS} steps (Appendix G)"
            )
    yield from weight_advice(workdir)


def weight_advice(workdir: Path | None) -> Iterator[str]:
    """What is doubtful about the weights of a work folder: its weights file's warnings, or what an old one tells."""
    try:
        content = read_weights(Layout(workdir or Path()).weights)
    except EvaluationError:
        return
    if "warnings" in content:
        yield from (f"λ: {text}" for text in content["warnings"])
        return
    low, high = WEIGHT_RANGE
    outside = [f"{task} {weight:.3f}" for task, weight in content["weights"].items() if not low <= weight <= high]
    if outside and workdir is not None:
        yield f"weights outside {low} to {high} (section 3.5; a higher temperature mends it): {', '.join(outside)}"
