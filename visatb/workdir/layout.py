"""Where everything of one experiment lies: the paths of a work folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.answers import safe_name
from eval.repeats import repeat_name


@dataclass(frozen=True)
class Layout:
    """The paths of the work folder `root`."""

    root: Path

    @property
    def experiment(self) -> Path:
        """The experiment file with all defaults written out."""
        return self.root / "experiment.yaml"

    @property
    def engine(self) -> Path:
        """What the workflow keeps for itself: plan of jobs, locks, hashes."""
        return self.root / ".workflow"

    @property
    def jobs(self) -> Path:
        """The jobs of the present run and the keys of their steps."""
        return self.engine / "jobs.json"

    @property
    def data(self) -> Path:
        """Subsets and questions."""
        return self.root / "data"

    @property
    def subsets(self) -> Path:
        """Which files each model is trained on, with counts and seed."""
        return self.data / "subsets.json"

    def subset(self, task: str, size: str, count: int, draw: int = 1) -> Path:
        """The `size` ("mini" or "large") subset of a task's training data, of `count` records; a file for each draw."""
        return self.data / f"{safe_name(task)}-{safe_name(repeat_name(size, draw))}_train-{count}.json"

    def question_folder(self, split: str) -> Path:
        """The questions of a split, one file per task."""
        return self.data / split

    def questions(self, task: str, split: str, count: int) -> Path:
        """The questions of a task, of `count` records."""
        return self.question_folder(split) / f"{safe_name(task)}_{split}-{count}.json"

    def model(self, name: str) -> Path:
        """The train command's output folder."""
        return self.root / "models" / safe_name(name)

    def answer_folder(self, split: str, model: str) -> Path:
        """Where a model's answers to a split lie."""
        return self.root / "answers" / split / safe_name(model)

    def answers(self, split: str, model: str, questions: Path) -> Path:
        """A model's answers to one file of questions."""
        return self.answer_folder(split, model) / f"{questions.stem}_{safe_name(model)}.json"

    def score(self, split: str, task: str, model: str) -> Path:
        """A model's score on a task."""
        return self.root / "scores" / split / f"{safe_name(task)}_{safe_name(model)}.json"

    def per_sample(self, split: str, task: str, model: str) -> Path:
        """The scores of the single questions."""
        return self.score(split, task, model).with_suffix(".per_sample.json")

    @property
    def representations(self) -> Path:
        """How the mini model represents each task, for `groups: auto`."""
        return self.engine / "representations.json"

    @property
    def grouping(self) -> Path:
        """The groups that `groups: auto` found, and their tree."""
        return self.root / "grouping.json"

    @property
    def matrix(self) -> Path:
        """The validation matrix."""
        return self.root / "matrix.json"

    @property
    def weights(self) -> Path:
        """The task weights."""
        return self.root / "weights.json"

    @property
    def results(self) -> Path:
        """Test figures of all methods, ΔI and ΔE."""
        return self.root / "results.json"

    @property
    def cost(self) -> Path:
        """What each model took."""
        return self.root / "cost.json"

    def done(self, job: str) -> Path:
        """The marker of a finished job."""
        return self.root / "done" / f"{safe_name(job)}.json"

    def steps(self, job: str) -> Path:
        """Which steps of a job are done or begun, with their keys and times."""
        return self.engine / "steps" / f"{safe_name(job)}.json"

    def outcome(self, job: str) -> Path:
        """How a job's last start ended."""
        return self.engine / "outcomes" / f"{safe_name(job)}.json"

    def progress(self, job: str) -> Path:
        """How far the command is that a job runs."""
        return self.engine / "progress" / f"{safe_name(job)}.json"

    def lock(self, name: str) -> Path:
        """A lock file."""
        return self.engine / "locks" / safe_name(name)

    def log(self, job: str) -> Path:
        """What a job printed."""
        return self.root / "logs" / f"{safe_name(job)}.log"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report" / "index.html"
