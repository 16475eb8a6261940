"""What each step of a job does. A step is called for every job that has it, and finds out itself whether it is done."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eval.cli import evaluate, log_notes
from eval.files import read_object, write_json
from llava.train.marks import BASE_MODEL, DIVERGED, WEIGHT_FILES
from visatb.experiment.models import ModelJob, models
from visatb.experiment.names import Split
from visatb.workdir.results import write_cost, write_results
from visatb.workdir.state import Kind, Step
from visatb.workdir.subsets import Subsets, write_subsets
from visatb.workflow import outputs, stage_commands
from visatb.workflow.context import Context
from visatb.workflow.process import StepError

logger = logging.getLogger("visatb.job")


@contextmanager
def _noted(context: Context, step: Step) -> Iterator[None]:
    """Note the step as begun, and at the end as done or broken off."""
    context.layout.progress(context.job.name).unlink(missing_ok=True)  # of the step before
    context.steps.begin(step)
    done = False
    try:
        yield
        done = True
    finally:
        made = outputs.made(context.layout, context.job, step) if done else ()
        context.steps.end(step, done, made)


def _simple(do: Callable[[Context], None]) -> Callable[[Context, Step], None]:
    """A step that is done in one go."""

    def step_of_its_own(context: Context, step: Step) -> None:
        if not context.steps.done(step):
            with _noted(context, step):
                do(context)

    return step_of_its_own


def train(context: Context, step: Step) -> None:
    """Train a model, or go on with it; nothing where its weights are whole, or are gone and not asked for any more."""
    model = _model(context)
    folder = context.layout.model(model.name)
    wanted = not _all_done(context, "answer", "represent")
    if context.steps.done(step) and not (wanted and _unusable(context, model, step)):
        tidy(context, model)
        return
    if context.steps.given_up(step, context.run_id):
        raise StepError(f"the training diverged and is not tried again in this run: {_reason(folder)}")
    if not context.steps.begun(step):
        shutil.rmtree(folder, ignore_errors=True)
    with _noted(context, step):
        if model.data:
            _train(context, model, step)
        elif _is_made_here(context, model):
            context.run("llava.train.make_base", stage_commands.base_arguments(context.experiment, folder, model))
    tidy(context, model)


def _all_done(context: Context, *kinds: Kind) -> bool:
    """Whether all of the job's steps of these kinds are done."""
    return all(context.steps.done(step) for step in context.planned if step.kind in kinds)


def _train(context: Context, model: ModelJob, step: Step) -> None:
    """Start the training; one that diverges would only do so again, however often a scheduler submits its job."""
    launch = context.launch
    subsets = Subsets.read(context.layout)
    arguments = stage_commands.train_arguments(context.experiment, context.layout, model, subsets, launch)
    try:
        context.run("llava.train.train", arguments, launch)
    except StepError:
        if (context.layout.model(model.name) / DIVERGED).exists():
            context.steps.give_up(step, context.run_id)
        raise


def _reason(folder: Path) -> str:
    """What a diverged training has left word of."""
    with suppress(OSError):
        return (folder / DIVERGED).read_text(encoding="utf-8").strip()
    return "see the log above"


def _is_made_here(context: Context, model: ModelJob) -> bool:
    """Whether a model's weights lie in the work folder: it is trained, or put together from parts."""
    parts = context.experiment.model
    return bool(model.data or parts.vision_tower or parts.projector)


def _unusable(context: Context, model: ModelJob, step: Step) -> bool:
    """Whether a finished model cannot answer: its weights are removed, or are not those that were written."""
    if _is_made_here(context, model) and not has_weights(context.layout.model(model.name)):
        return True
    damage = context.steps.damage(step, thorough=True)
    if damage:
        logger.warning("%s; the model is made again", damage)
    return damage is not None


def represent(context: Context, step: Step) -> None:
    """Tell how the model represents each task."""
    model = _model(context)
    if not context.steps.done(step):
        checkpoint = str(context.layout.model(model.name))
        subsets = Subsets.read(context.layout)
        with _noted(context, step):
            arguments = stage_commands.represent_arguments(
                context.experiment, context.layout, model, subsets, checkpoint
            )
            context.run("llava.infer.represent", arguments)


def answer(context: Context, step: Step) -> None:
    """Answer a split's questions."""
    model, split = _model(context), _split(step)
    if context.steps.done(step):
        return
    if not context.steps.begun(step):
        shutil.rmtree(context.layout.answer_folder(split, model.name), ignore_errors=True)
    _remove_without_key(context.layout.answer_folder(split, model.name))
    subsets = Subsets.read(context.layout)
    folder = context.layout.model(model.name)
    checkpoint = str(folder) if folder.is_dir() else context.experiment.model.path
    with _noted(context, step):
        arguments = stage_commands.answer_arguments(
            context.experiment, context.layout, model, split, subsets, checkpoint
        )
        context.run("inference_visatb", arguments, context.launch)


def _remove_without_key(folder: Path) -> None:
    """Remove answers whose key file is lost or damaged: elsewhere they could be a user's, here they are ours."""
    for file in folder.glob("*.json"):
        if not read_object(file.with_name(f"{file.name}.key")):
            logger.warning("%s has lost its key; it is made again", file)
            file.unlink()


def score(context: Context, step: Step) -> None:
    """Score a split's answers by each task's metrics; then let go of weights that nothing needs any more."""
    model, split = _model(context), _split(step)
    if not context.steps.done(step):
        with _noted(context, step):
            questions = Subsets.read(context.layout).questions[split]
            for task in model.asked[split]:
                if not (split == "test" and context.experiment.tasks[task].score):
                    score_task(context, model.name, split, task, Path(questions[task].file))
    if _all_done(context, "answer") and droppable(context, model):
        weights = list(_weight_files(context.layout.model(model.name)))
        [trained] = [step for step in context.planned if step.kind == "train"]
        context.steps.forget(trained, weights)
        for file in weights:
            file.unlink()


def score_task(context: Context, model: str, split: Split, task: str, questions: Path) -> None:
    """Write a task's score file and its per-sample scores."""
    layout = context.layout
    answers = layout.answers(split, model, questions)
    metrics = context.experiment.metrics(task, split)
    evaluation = evaluate(answers, metrics, task=task, model=model, split=split)
    log_notes(answers, evaluation)
    evaluation.write(layout.score(split, task, model), layout.per_sample(split, task, model))


def weights(context: Context) -> None:
    """Collect the validation scores and compute λ."""
    layout, experiment = context.layout, context.experiment
    remove_stale_scores(context, "val")
    groups = layout.data / "groups.json" if experiment.groups else None
    if groups is not None:
        write_json(groups, experiment.groups)
    arguments = stage_commands.weighting_arguments(experiment, layout, None if groups is None else str(groups))
    remove_stale_scores(context, "guard")
    context.run("weighting_visatb", arguments)


def results(context: Context) -> None:
    """Put the test figures of all methods together, and what each model took."""
    remove_stale_scores(context, "test")
    write_results(context.experiment, context.layout)
    write_cost(context.experiment, context.layout)


def remove_stale_scores(context: Context, split: Split) -> None:
    """Remove scores that other settings left: of models or tasks that the experiment no longer has."""
    layout = context.layout
    wanted = {
        path
        for model in models(context.experiment)
        for task in model.asked[split]
        for path in (layout.score(split, task, model.name), layout.per_sample(split, task, model.name))
    }
    for path in (layout.root / "scores" / split).glob("*.json"):
        if path not in wanted:
            path.unlink()


def report(context: Context) -> None:
    """Make the report."""
    context.run("visatb.commands.report", [str(context.layout.root)])


def check(context: Context) -> None:
    """Check all data and settings before anything is trained."""
    context.run("visatb.commands.validate", [str(context.layout.experiment), "--workdir", str(context.layout.root)])


def has_weights(folder: Path) -> bool:
    """Whether a finished model's weights are in the folder."""
    return any(True for pattern in WEIGHT_FILES for _ in folder.glob(pattern))


def droppable(context: Context, model: ModelJob) -> bool:
    """Whether a model's weights go once it has answered: proxies' and STL's, unless they are to be kept."""
    if model.stage not in ("proxies", "stl", "base") or context.experiment.keep_proxies != "none":
        return False
    # Where a test score comes from outside and nothing was answered here, somebody else will ask the model.
    stl = model.name.startswith("STL:")
    return not (stl and not model.asked["test"])


def _weight_files(folder: Path) -> Iterator[Path]:
    """What goes when a model's weights go; its cards and logs stay."""
    for pattern in WEIGHT_FILES:
        yield from folder.glob(pattern)
    yield from (file for file in (folder / BASE_MODEL).rglob("*") if file.is_file())


def tidy(context: Context, model: ModelJob) -> None:
    """Remove a finished training's checkpoints, damaged ones too; of those to be kept, the optimizer's state."""
    folder = context.layout.model(model.name)
    for damaged in folder.glob("damaged-checkpoint-*"):
        shutil.rmtree(damaged)
    for checkpoint in folder.glob("checkpoint-*"):
        if context.experiment.keep_proxies != "all":
            shutil.rmtree(checkpoint)
            continue
        for state in [*checkpoint.glob("global_step*"), *checkpoint.glob("optimizer*"), *checkpoint.glob("*_states*")]:
            shutil.rmtree(state) if state.is_dir() else state.unlink()


def _model(context: Context) -> ModelJob:
    assert context.job.model is not None
    return context.job.model


def _split(step: Step) -> Split:
    assert step.split is not None
    return step.split


STEPS: dict[Kind, Callable[[Context, Step], None]] = {
    "check": _simple(check),
    "subsets": _simple(lambda context: write_subsets(context.experiment, context.layout)),
    "train": train,
    "represent": represent,
    "answer": answer,
    "score": score,
    "weights": _simple(weights),
    "results": _simple(results),
    "report": _simple(report),
}
"""What does a step, by its kind."""
