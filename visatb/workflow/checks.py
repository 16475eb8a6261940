"""`visatb validate`: check all data and settings of an experiment, before anything is trained.

Every training record is checked, its image looked up and its text tokenised as training will (the index stays for the
final runs); images are decoded, a seeded choice or all of them; every question file is read; every truth is put to its
metric; every training argument to its parser.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eval.answers import read_answers
from eval.cli import evaluate, log_notes
from eval.errors import EvaluationError
from eval.files import write_json
from eval.metrics import load_metric, metric_class
from llava.data.decode import AT_MOST, Decoded, decode_images
from llava.data.errors import DataError
from llava.data.records import image_paths
from visatb.experiment.models import ModelJob, Stage, models
from visatb.experiment.names import SPLITS, Split
from visatb.experiment.schema import Experiment, Task
from visatb.experiment.shapes import shape_of
from visatb.experiment.training import batch_split, training_arguments
from visatb.experiment.yaml_lines import ExperimentError, read
from visatb.workdir.layout import Layout
from visatb.workdir.subsets import Subsets, TrainingData
from visatb.workflow.fit import GIB, fit, found_card
from visatb.workflow.overlap import overlaps
from visatb.workflow.stage_commands import Launch, train_arguments

if TYPE_CHECKING:
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
    from llava.train.source import Source

    Parsed = tuple[ModelArguments, DataArguments, TrainingArguments]

T = TypeVar("T")

logger = logging.getLogger(__name__)

LEAST_RECORDS = 2
"""In training data: a subset is smaller than the whole. Of questions: a score of one has no spread."""

FAULTS = (ExperimentError, DataError, EvaluationError, ValueError)


class _Checks:
    """Runs checks one after the other and keeps what each of them finds."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def run(self, check: Callable[..., T], *arguments: Any) -> T | None:
        """The check's result, None where it found a fault."""
        try:
            return check(*arguments)
        except FAULTS as error:
            self.faults += [text for text in [str(error)] if text not in self.faults]
            return None


def validate(experiment: Experiment, layout: Layout, images: int | None = AT_MOST) -> Decoded | None:
    """Check everything, and go on after a fault with all that does not depend on it.

    `images` is how many are decoded, by a seeded choice; None for all. Returns how many of how many were, None where
    there is no image folder.

    Raises:
        ExperimentError: everything that is wrong, with file and record.
    """
    experiment = experiment.with_groups({})  # the final runs' settings, too, where groups are still to be found
    checks = _Checks()
    checks.run(_check_files, experiment)
    folder = experiment.image_folder
    has_images = folder is None or Path(folder).is_dir()
    if not has_images:
        experiment = experiment.model_copy(update={"image_folder": None})
    scored = [experiment.tasks[task].metric for task in experiment.balanced]
    scored += [guard.metric for guard in experiment.guards.values()]
    for metric in dict.fromkeys(metric for metrics in scored for metric in metrics):
        checks.run(load_metric, metric)
    checks.run(_check_launch, experiment)
    checks.run(_check_memory, experiment)
    parsed = {stage: checks.run(_parse, experiment, layout, stage) for stage in _stages(experiment)}
    stage = next((one for one in ("finals", *parsed) if parsed.get(one)), None)
    final = parsed[stage] if stage else None
    source = checks.run(_check_model, experiment, stage, final) if final else None
    decoded = None
    if has_images:
        paths = (checks.run(_check_training_data, experiment, source, final) if source and final else None) or set()
        paths |= _check_questions(experiment, checks)
        checks.run(_check_overlaps, experiment)
        if folder is not None:
            decoded = checks.run(decode_images, paths, folder, _data_files(experiment), images, experiment.seed)
    if checks.faults:
        raise ExperimentError("\n".join(checks.faults))
    return decoded


def _check_files(experiment: Experiment) -> None:
    lost = []
    if experiment.image_folder is not None and not Path(experiment.image_folder).is_dir():
        lost.append(f"{experiment.source}: image_folder: {experiment.image_folder} is no folder")
    for name, task in experiment.tasks.items():
        lost += [
            f"{experiment.source}: task {name}: {file} does not exist"
            for file in _files_of(task)
            if not Path(file).is_file()
        ]
    lost += [
        f"{experiment.source}: task {name}: {guard.val} does not exist"
        for name, guard in experiment.guards.items()
        if not Path(guard.val).is_file()
    ]
    if lost:
        raise ExperimentError("\n".join(lost))


def _files_of(task: Task) -> list[str]:
    return [*task.train, *filter(None, task.questions.values())]


def _data_files(experiment: Experiment) -> list[str]:
    """All files of records that are there, each once."""
    files = [file for task in experiment.tasks.values() for file in _files_of(task)]
    return list(dict.fromkeys(_there([*files, *(guard.val for guard in experiment.guards.values())])))


def _check_launch(experiment: Experiment) -> None:
    launcher = experiment.launcher
    for processes in {
        1,
        launcher.processes,
        *([launcher.gpus_per_job] if launcher.gpus_per_job not in ("all", 0) else []),
    }:
        batch_split(experiment, experiment.training, int(processes))


def _check_memory(experiment: Experiment) -> None:
    """Refuse trainings that cannot fit this machine's GPUs; what GPU or model is not known is not judged."""
    found, shape = found_card(), shape_of(experiment.model.path)
    asked = experiment.launcher.gpus_per_job
    if found is None or shape is None or asked == 0:
        return
    card, count = found
    fits = [
        fit(experiment, shape, card, stage, count if asked == "all" else int(asked)) for stage in _stages(experiment)
    ]
    faults = [
        f"{experiment.source}: {one.stage} do not fit this machine's {card.name}: "
        f"{one.memory.total / GIB:.0f} of {card.memory / GIB:.0f} GiB, as `visatb plan --gpu auto` reckons; "
        f"what would: {one.remedy}"
        for one in fits
        if not one.fits and not one.setup.beyond
    ]
    if faults:
        raise ExperimentError("\n".join(faults))


def _stages(experiment: Experiment) -> list[Stage]:
    return list(dict.fromkeys(model.stage for model in models(experiment) if model.data))


def _parse(experiment: Experiment, layout: Layout, stage: Stage) -> Parsed:
    """Put a stage's command line to the train command's own parser, over the whole data."""
    from llava.train.arguments import parse_arguments
    from llava.train.tasks import resolve_tasks

    whole = ModelJob("check", stage, "EW", tuple((task, "whole") for task in experiment.tasks))
    files = {name: _there(task.train) for name, task in experiment.tasks.items()}
    words = train_arguments(experiment, layout, whole, Subsets(models={whole.name: TrainingData(files)}), Launch())
    try:
        model, data, training = parse_arguments(words, start=False)
        resolve_tasks(data, training)
    except ValueError as error:
        place = f"{experiment.source}: training settings ({stage}): "
        raise ExperimentError("\n".join(place + _as_setting(line) for line in str(error).splitlines())) from error
    return model, data, training


def _there(files: Sequence[str]) -> list[str]:
    return [file for file in files if Path(file).is_file()]


def _as_setting(text: str) -> str:
    """A message of the commands in the words of an experiment file: keys in place of flags."""
    return re.sub(r"(?<!\S)--(\w[\w-]*)", lambda flag: flag[1].replace("-", "_"), text)


def _at_its_line(experiment: Experiment, stage: Stage, error: ValueError) -> ValueError:
    """An error about a flag that a training setting gives, told of that setting and its line; else the error itself."""
    flag, _, text = str(error).partition(" ")
    name = flag.removeprefix("--")
    if not flag.startswith("--") or name not in training_arguments(experiment, stage):
        return error
    document = read(experiment.source)
    place = next((one for one in (("overrides", stage, name), ("training", name)) if one in document.lines), None)
    return document.error(place or ("training", name), text if place else f"{text} ({name} is not given: the default)")


def _check_model(experiment: Experiment, stage: Stage, parsed: Parsed) -> Source:
    from llava.train.source import find_source

    try:
        source = find_source(*parsed)
    except ValueError as error:
        raise _at_its_line(experiment, stage, error) from error
    if experiment.model.family not in (None, source.family.name):
        raise ExperimentError(
            f"{experiment.source}: model.family: {experiment.model.path} is of family {source.family.name}, "
            f"not {experiment.model.family}"
        )
    return source


def _check_training_data(experiment: Experiment, source: Source, parsed: Parsed) -> set[str]:
    """Build the index of the whole training data, which the final runs then find ready; returns the images' paths."""
    from llava.data.index import unknown_answers
    from llava.train.tasks import resolve_tasks
    from llava.train.train import load_data

    _, data, training = parsed
    store = load_data(data.data_path, source, resolve_tasks(data, training), data, training).store
    summary = store.summary
    faults = [text for text, all_of_them in unknown_answers(summary) if all_of_them]
    faults += [
        f"task {task}: {counts.get('samples', 0)} training records are too few; a subset must be able to be smaller"
        for task, counts in summary["per_task"].items()
        if counts.get("samples", 0) < LEAST_RECORDS and _there(experiment.tasks[task].train)  # else that is the fault
    ]
    if faults:
        raise DataError("\n".join(faults))
    return store.image_paths()


def _check_questions(experiment: Experiment, checks: _Checks) -> set[str]:
    """Check the question files; returns the paths of their images."""
    paths: set[str] = set()
    asked = [(split, task) for model in models(experiment) for split in SPLITS for task in model.asked[split]]
    for split, name in dict.fromkeys(asked):
        file = experiment.questions(name, split)
        if file and Path(file).is_file():
            paths |= checks.run(_check_question_file, experiment, split, name, file) or set()
    return paths


def _check_question_file(experiment: Experiment, split: Split, name: str, file: str) -> set[str]:
    from llava.infer.questions import read_questions

    try:
        questions = read_questions(file, experiment.image_folder)
    except DataError as error:
        raise DataError(_as_setting(str(error))) from error
    logger.info("%s, %s: %d questions", name, split, len(questions.records))
    if len(questions.records) < LEAST_RECORDS:
        raise DataError(f"{file}: one question says nothing about a model; give task {name} more for {split}")
    if split != "test" or experiment.tasks[name].score is None:
        _check_truths(Path(file), questions.records, experiment.metrics(name, split))
    return {path for record in questions.records for path in image_paths(record)}


def _check_overlaps(experiment: Experiment) -> None:
    fatal = []
    for text, all_of_them in overlaps(experiment):
        if all_of_them:
            fatal.append(text)
        else:
            logger.warning("%s", text)
    if fatal:
        raise DataError("\n".join(fatal))


def _check_truths(file: Path, records: list[dict[str, Any]], metrics: list[str]) -> None:
    """Score the truths as if a model had answered them."""
    with tempfile.TemporaryDirectory(prefix="visatb-truths-") as folder:
        answers = Path(folder) / file.name
        write_json(answers, [_perfect(record) for record in records])
        try:
            read_answers(answers)
            for metric in metrics:
                if metric_class(metric).checks_truths:
                    log_notes(file, evaluate(answers, metric, task="task", model="truth", split="val"))
        except EvaluationError as error:
            raise EvaluationError(str(error).replace(str(answers), str(file))) from error


def _perfect(record: dict[str, Any]) -> dict[str, Any]:
    human, answer = record["conversations"]
    truth = answer.get("value")
    first = truth[0] if isinstance(truth, list) and truth else truth
    return {**record, "conversations": [human, {**answer, "generative_value": str(first)}]}
