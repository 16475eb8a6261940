"""How long an experiment's trainings take, and whether they fit a GPU: as measured so far, else as reckoned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from llava.data.store import SUMMARY_FILE, read_summary
from visatb.experiment.models import ModelJob, models
from visatb.experiment.schema import Experiment
from visatb.experiment.shapes import Shape, shape_of
from visatb.experiment.training import optimizer_steps, training_arguments
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.contents import read_run_card
from visatb.workdir.layout import Layout
from visatb.workdir.state import Steps
from visatb.workdir.subsets import Counts
from visatb.workflow.fit import PEAK_SHARE, Card, Fit, fit, seconds, setup_of, train_flops

# Beside an image's tokens, where the data are not indexed yet: the text of a sample of the paper's mixtures, and how
# much of it is the answer's.
TEXT_TOKENS, TARGET_TOKENS = 268, 220


class TrainingTime:
    """The trainings of one experiment on one kind of card; without a card only what was measured is known.

    Raises:
        ExperimentError: a card is given, and the model's shape is not known.
    """

    def __init__(self, experiment: Experiment, workdir: Path | None, card: Card | None) -> None:
        self.experiment = experiment
        self.layout = None if workdir is None else Layout(workdir)
        self.card = card
        self.shape: Shape | None = None
        if card is not None:
            self.shape = shape_of(experiment.model.path)
            if self.shape is None:
                raise ExperimentError(
                    f"{experiment.source}: model.path: {experiment.model.path} is not on this machine, and its shape "
                    "is not known, so that memory cannot be reckoned; load it first"
                )

    @property
    def processes(self) -> int:
        """GPUs of a job; `all` is taken for eight, a node."""
        gpus = self.experiment.launcher.gpus_per_job
        return 8 if gpus == "all" else max(1, int(gpus))

    def seconds(self, model: ModelJob, found: Counts) -> float | None:
        """How long a model's training takes; None where nothing tells."""
        if not model.data:
            return 0.0
        seen = self._seen(model, found)
        measured = self._measured.get(self._kind(model))
        if measured is not None:
            return seen * measured
        if self.card is None or self.shape is None:
            return None
        setup = setup_of(self.experiment, model.stage, self.processes)
        tokens, targets = self._tokens
        flops = train_flops(self.shape, setup, min(tokens, setup.length), targets)
        return seconds(seen * flops, self.card, self.processes)

    def _seen(self, model: ModelJob, found: Counts) -> int:
        """Samples that a training goes through, all epochs together."""
        whole = sum(sizes["whole"] for sizes in found.train.values())
        stage, samples = ("finals", whole) if model.equal_steps else (model.stage, found.samples(model))
        return optimizer_steps(self.experiment, stage, samples) * self.experiment.global_batch_size

    def _kind(self, model: ModelJob) -> str:
        """What trainings that take as long a sample have in common: LoRA's proxies tell nothing of full final runs."""
        return json.dumps(training_arguments(self.experiment, model.stage), sort_keys=True)

    @cached_property
    def _measured(self) -> dict[str, float]:
        """Seconds a sample of the trainings that this work folder has done, by their kind."""
        took: dict[str, tuple[float, int]] = {}
        for model in models(self.experiment) if self.layout is not None else ():
            assert self.layout is not None
            spent = Steps(self.layout, model.name).seconds("train") if model.data else 0.0
            card = (read_run_card(self.layout.model(model.name)) or {}) if spent else {}
            if samples := card.get("steps", 0) * card.get("global_batch_size", 0):
                so_far = took.get(self._kind(model), (0.0, 0))
                took[self._kind(model)] = so_far[0] + spent, so_far[1] + samples
        return {kind: spent / samples for kind, (spent, samples) in took.items()}

    @cached_property
    def _tokens(self) -> tuple[float, float]:
        """Mean tokens and targets of a sample: of the largest index of the work folder, else assumed."""
        summaries = []
        if self.layout is not None:
            summaries = [read_summary(file.parent) for file in (self.layout.data / "index").glob(f"*/{SUMMARY_FILE}")]
        largest = max(summaries, key=lambda summary: summary.get("num_samples", 0), default={})
        counts = largest.get("per_task", {}).values()
        if samples := sum(count.get("samples", 0) for count in counts):
            return tuple(sum(count.get(key, 0) for count in counts) / samples for key in ("tokens", "target_tokens"))
        assert self.shape is not None
        return self.shape.tower.tokens + TEXT_TOKENS, TARGET_TOKENS

    def fits(self) -> list[Fit]:
        """Whether each stage's training fits the card; empty without one."""
        if self.card is None or self.shape is None:
            return []
        stages = dict.fromkeys(model.stage for model in models(self.experiment) if model.data)
        return [fit(self.experiment, self.shape, self.card, stage, self.processes) for stage in stages]

    def notes(self) -> Iterator[str]:
        """What the times rest on."""
        if self._measured:
            rates = ", ".join(f"{rate:.3g}" for rate in self._measured.values())
            yield f"training time goes by the trainings that this work folder has done ({rates} s a sample)"
        if self.card is not None and not all(
            self._kind(m) in self._measured for m in models(self.experiment) if m.data
        ):
            tokens, targets = self._tokens
            yield (
                f"training time is reckoned, not measured: {self.processes} × {self.card.name} at {PEAK_SHARE:.0%} of "
                f"the peak, {tokens:,.0f} tokens a sample, {targets:,.0f} of them targets"
            )
        if beyond := dict.fromkeys(name for one in self.fits() for name in one.setup.beyond):
            yield f"memory is reckoned without {', '.join(beyond)}"
