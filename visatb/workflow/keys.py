"""What each step's outcome depends on, as one hash: a step is done again when its key changes, and only then.

A key holds the keys of the steps before it, the content of the user's files (of images their sizes and times of
change), and the settings that decide the outcome; not how, where or how fast it is computed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llava.train.without_effect import with_effect
from visatb.experiment.models import ModelJob, models, proxies
from visatb.experiment.names import Split
from visatb.experiment.schema import Experiment
from visatb.experiment.training import training_arguments
from visatb.workdir.hashes import Files
from visatb.workdir.layout import Layout
from visatb.workdir.state import Keys, Kind, Step, noted_keys
from visatb.workflow.jobs import CHECK, REPORT, RESULTS, SUBSETS, WEIGHTS, Job, jobs


def compute(experiment: Experiment, layout: Layout) -> Keys:
    """The keys of all jobs' steps."""
    files = Files(layout.engine / "hashes.json")
    maker = _Maker(experiment, files)
    found = {job.name: maker.steps(job) for job in jobs(experiment)}
    files.save()
    return found


def digest(value: Any) -> str:
    """A hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:20]


def token_reading(model: str) -> dict[str, int]:
    """What marks a model folder whose tokenizer files gave other tokens up to some version; empty for all others.

    2: without tokenizer.json, or with one whose merges begin with runs of spaces, sentencepiece's order is used now.
    """
    folder = Path(model)
    if not (folder / "tokenizer.model").is_file():
        return {}
    with suppress(OSError, ValueError, LookupError, TypeError):
        merges = json.loads((folder / "tokenizer.json").read_bytes())["model"]["merges"]
        return {"tokens": 2} if merges[0] in (["▁", "▁"], "▁ ▁") else {}
    return {"tokens": 2}


class _Maker:
    def __init__(self, experiment: Experiment, files: Files) -> None:
        self.experiment = experiment
        self.files = files
        self.images_of = functools.cache(files.images)  # several models have the same data
        self.made: Keys = {}
        model = experiment.model
        parts = {part: files.model(getattr(model, part)) for part in ("path", "vision_tower", "projector")}
        self.model = {**parts, "template": model.template, **token_reading(model.path)}

    def steps(self, job: Job) -> tuple[Step, ...]:
        """A job's steps with their keys; the jobs before it must have theirs."""
        if job.model is not None:
            steps = self._model_steps(job.model)
        else:
            found: dict[str, tuple[Kind, Callable[[], Any]]] = {
                CHECK: ("check", self._check),
                SUBSETS: ("subsets", self._subsets),
                WEIGHTS: ("weights", self._weights),
                RESULTS: ("results", self._results),
                REPORT: ("report", self._report),
            }
            kind, content = found[job.name]
            steps = (Step(kind, digest(content())),)
        self.made[job.name] = steps
        return steps

    def _train_files(self, task: str) -> list[str]:
        return [self.files.hash(file) for file in self.experiment.tasks[task].train]

    def _images(self, files: Iterable[str | None]) -> list[Any]:
        """What stands for the images of these files' records."""
        return [self.images_of(file, self.experiment.image_folder) for file in files if file]

    def _train_images(self, tasks: Iterable[str]) -> list[Any]:
        return self._images(file for task in tasks for file in self.experiment.tasks[task].train)

    def _question_images(self, split: Split, tasks: Iterable[str]) -> list[Any]:
        return self._images(self.experiment.questions(task, split) for task in tasks)

    def _questions(self, split: Split, tasks: tuple[str, ...]) -> list[Any]:
        limit = self.experiment.max_val_samples if split != "test" else None
        seed = self.experiment.subsets.seed if limit else None
        files = {task: file for task in tasks if (file := self.experiment.questions(task, split))}
        return [[task, self.files.hash(file), limit, seed] for task, file in files.items()]

    def _part(self, task: str, size: str, repeat: int = 1) -> list[Any]:
        rate = 1.0 if size == "whole" else getattr(self.experiment.subsets, size)
        return [task, self._train_files(task), rate, self.experiment.subsets_seed(repeat) if rate < 1 else None]

    def _arguments(self, stage: str) -> dict[str, Any]:
        return with_effect(training_arguments(self.experiment, stage))

    def _check(self) -> Any:
        experiment = self.experiment.with_groups({})  # where groups are open, each task by itself
        return [
            self.model,
            experiment.image_folder,
            {task: self._train_files(task) for task in experiment.tasks},
            {split: self._questions(split, self._asked(split)) for split in experiment.splits},
            self._train_images(experiment.tasks),
            {split: self._question_images(split, self._asked(split)) for split in experiment.splits},
            [task.metric for task in experiment.tasks.values()]
            + [guard.metric for guard in experiment.guards.values()],
            {stage: self._arguments(stage) for stage in {model.stage for model in models(experiment)}},
            [experiment.global_batch_size, experiment.groups],
        ]

    def _asked(self, split: Split) -> tuple[str, ...]:
        if split == "guard":
            return tuple(self.experiment.guards)
        return tuple(name for name in self.experiment.balanced if self.experiment.tasks[name].questions[split])

    def _subsets(self) -> Any:
        wanted = models(self.experiment)
        parts = dict.fromkeys((*part, model.repeat) for model in wanted for part in model.data)
        split_tasks = {
            split: tuple(dict.fromkeys(task for model in wanted for task in model.asked[split]))
            for split in self.experiment.splits
        }
        return [
            [self._part(*part) for part in parts],
            {split: self._questions(split, tasks) for split, tasks in split_tasks.items()},
            [[model.name, model.data] for model in wanted],
        ]

    def _model_steps(self, model: ModelJob) -> tuple[Step, ...]:
        experiment = self.experiment
        content: dict[str, Any] = {"model": self.model}
        if model.data:
            content |= {
                "data": [self._part(*part, model.repeat) for part in model.data],
                "image_folder": experiment.image_folder,
                "images": self._train_images(model.tasks),
                "arguments": self._arguments(model.stage),
                "batch": experiment.global_batch_size,
                "seed": experiment.training_seed(model.repeat),
                "method": model.method,
            }
        elif experiment.model.vision_tower and not experiment.model.projector:
            content["seed"] = experiment.training_seed(model.repeat)  # its projector is drawn at random
        if model.stage == "finals":
            content["groups"] = experiment.groups
        if model.equal_steps:
            content["steps"] = [self._part(task, "whole") for task in experiment.tasks] + [self._arguments("finals")]
        if model.method == "VisATB":
            content["weights"] = digest(self._lambda())
            if experiment.weighting.apply != "loss":
                content["apply"] = experiment.weighting.apply
        train = Step("train", digest(content))
        steps = [train]
        if model.represents:
            tasks = model.asked["val"]
            asked = [self._questions("val", tasks), self._question_images("val", tasks)]
            steps.append(Step("represent", digest([train.key, *asked])))
        for split, tasks in model.asked.items():
            if tasks:
                how: dict[str, Any] = {"truth_loss": True}
                if not experiment.by_loss(split):
                    how = without(experiment.generation.model_dump(), "batch_size")
                asked = [self._questions(split, tasks), self._question_images(split, tasks)]
                answer = Step("answer", digest([train.key, *asked, how]), split)
                metrics = [[task, experiment.metrics(task, split)] for task in tasks]
                score = Step("score", digest([answer.key, metrics, self._external(tasks, split)]), split)
                steps += [answer, score]
        return tuple(steps)

    def _external(self, tasks: tuple[str, ...], split: Split) -> list[str]:
        """Tasks whose test score comes from outside: their answers are not scored here."""
        return [task for task in tasks if split == "test" and self.experiment.tasks[task].score]

    def _weights(self) -> Any:
        content = [self._lambda(), self.experiment.weighting.bootstrap]
        if limits := {name: guard.guard for name, guard in self.experiment.guards.items()}:
            content.append([limits, self._scores("guard")])
        return content

    def _scores(self, split: Split) -> dict[str, str]:
        """The keys of the proxies' scores of a split."""
        return {
            model.name: step.key
            for model in proxies(self.experiment)
            for step in self.made[model.name]
            if (step.kind, step.split) == ("score", split)
        }

    def _lambda(self) -> Any:
        """What decides λ itself, which its intervals do not."""
        experiment = self.experiment
        scores = self._scores("val")
        weighting = without(experiment.weighting.model_dump(), "apply", "validation")  # the scores' keys tell
        if experiment.weighting.shrink == "none":  # else λ itself depends on the draws
            weighting = without(weighting, "bootstrap", "shrink")
        return [scores, weighting, experiment.groups, experiment.fixed]

    def _results(self) -> Any:
        external = {name: self.files.hash(task.score) for name, task in self.experiment.tasks.items() if task.score}
        tested = {model.name: noted_keys(self.made[model.name]) for model in models(self.experiment)}
        return [tested, external, self.experiment.methods]

    def _report(self) -> Any:
        return [noted_keys(self.made[RESULTS]), noted_keys(self.made[WEIGHTS]), self.experiment.name]


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """The other values of a mapping."""
    return {name: value for name, value in values.items() if name not in names}
