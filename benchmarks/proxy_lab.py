"""A small world in one process: proxies trained, validated and read in many ways, with what each of it costs.

The benchmark `cheap_lambda` asks for models and figures by what they are; what was made before, in this run or an
earlier one, is taken from the store with the cost that it had then. Training is that of the experiment (AdamW, cosine
schedule, the global token mean of Equation 2 at equal weights), without the start of processes, reading of images and
logging, which small worlds spend more on than on training.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import get_cosine_schedule_with_warmup

from eval.answers import Sample
from eval.losses import TruthLoss, loss_text
from eval.metrics import load_metric
from eval.scores import Column
from llava.data.collator import Collator
from llava.data.dataset import InstructionDataset
from llava.data.index import build_index
from llava.data.index_rows import IndexSettings
from llava.infer.checkpoint import Checkpoint
from llava.infer.engine import GenerationSettings, Generator
from llava.infer.questions import read_questions
from llava.model.family import family_of
from transformers_patch.forward import patch_forward
from visatb.experiment.schema import Experiment

BATCH = 50  # rows of a validation forward


@dataclass
class Cost:
    """Samples trained (an answer or a loss is no sample), floating-point operations, and CPU seconds of one core."""

    samples: float = 0.0
    flops: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.samples + other.samples, self.flops + other.flops, self.cpu + other.cpu)


@dataclass(frozen=True)
class Training:
    """A model: from `start` (None: the base) over so many samples of each task, from number `skip` of its order on.

    `share`: how much of the schedule is run; the learning rate falls as if all of it were.
    """

    sizes: Mapping[str, int]
    start: Training | None = None
    skip: Mapping[str, int] = field(default_factory=dict)
    learning_rate: float = 0.0
    rank: int = 0
    share: float = 1.0

    @property
    def key(self) -> str:
        """A name for it in the store."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]


@dataclass
class Trained:
    """The trainable parameters, and what the training cost."""

    state: dict[str, Tensor]
    cost: Cost


class World:
    """Data, base model and settings of an experiment, all in memory."""

    def __init__(self, experiment: Experiment, cache: Path) -> None:
        self.experiment = experiment
        self.tasks = experiment.balanced
        checkpoint = Checkpoint(experiment.model.path, None, "float32", "cpu")
        self.model: Any = checkpoint.model
        self.processor = checkpoint.processor
        self.length = int(str(experiment.training["model_max_length"]))
        self.collate = Collator(self.processor, self.length)
        self.train = {task: self._samples(cache, experiment.tasks[task].train, task) for task in self.tasks}
        self.truths = {task: self._samples(cache, [experiment.tasks[task].val or ""], task) for task in self.tasks}
        self.questions = {
            task: read_questions(experiment.tasks[task].val or "", experiment.image_folder) for task in self.tasks
        }
        self.count = {task: len(samples) for task, samples in self.train.items()}
        self.whole = sum(self.count.values())
        family = family_of(self.model.config)
        self.model.requires_grad_(False)
        for part in ("projector", "language"):
            for parameter in family.find_parameters(self.model, part):
                parameter.requires_grad_(True)
        patch_forward(self.model, vocab_size=family.real_vocab_size(self.model.config))
        self.base = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def _samples(self, cache: Path, files: list[str], task: str) -> list[dict[str, Any]]:
        settings = IndexSettings(
            self.processor,
            self.processor.default_template,
            self.length,
            self.experiment.image_folder,
            (task,),
            dict.fromkeys(files, task),
        )
        index = build_index(files, settings, cache, "error", 1)
        dataset = InstructionDataset(index, self.experiment.image_folder, self.processor)
        return [dataset[number] for number in range(len(dataset))]

    @property
    def learning_rate(self) -> float:
        """The experiment's own."""
        return float(str(self.experiment.training["learning_rate"]))

    @cached_property
    def flops(self) -> dict[str, dict[str, float]]:
        """Floating-point operations of a sample of each task, counted on a batch of eight: `train` and `forward`.

        An answer takes a forward, too: of its prompt at once, and of each of its tokens when it is written.
        """
        found = {}
        for task, samples in self.train.items():
            batch = self.collate([dict(sample) for sample in samples[:8]])
            with FlopCounterMode(display=False) as forward, torch.no_grad():
                self.model(**batch)
            with FlopCounterMode(display=False) as both:
                self.model(**batch).token_losses.mean().backward()
            self.model.zero_grad()
            found[task] = {
                "train": both.get_total_flops() / 8,
                "forward": forward.get_total_flops() / 8,
            }
        return found


class Lab:
    """The models and figures of one world and seed."""

    def __init__(self, world: World, seed: int, folder: Path) -> None:
        self.world = world
        self.seed = seed
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._held: dict[str, Any] = {}

    @cached_property
    def order(self) -> dict[str, NDArray[np.int64]]:
        """The order in which each task's samples are taken: a smaller subset lies in a larger one."""
        tasks = self.world.tasks
        return {
            task: np.random.default_rng([self.seed, number]).permutation(self.world.count[task])
            for number, task in enumerate(tasks)
        }

    def _stored(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._held:
            path = self.folder / f"{name}.pt"
            if not path.exists():
                torch.save(make(), path.with_suffix(".new"))
                path.with_suffix(".new").rename(path)
            self._held[name] = torch.load(path, weights_only=True)
        return self._held[name]

    # ---- models

    def trained(self, training: Training) -> Trained:
        """The model of a training."""
        held = self._stored(training.key, lambda: self._train(training))
        return Trained(held["state"], Cost(**held["cost"]))

    def load(self, training: Training | None) -> None:
        """Put a model's parameters into the world's."""
        state = self.world.base if training is None else self._state(training)
        with torch.no_grad():
            for name, parameter in self.world.model.named_parameters():
                if name in state:
                    parameter.copy_(state[name])

    def _state(self, training: Training) -> dict[str, Tensor]:
        return self.trained(training).state

    def _train(self, training: Training) -> dict[str, Any]:
        world = self.world
        self.load(training.start)
        rows = [
            world.train[task][index]
            for task in world.tasks
            for index in self.order[task][training.skip.get(task, 0) :][: training.sizes.get(task, 0)]
        ]
        tasks = [task for task in world.tasks for _ in range(training.sizes.get(task, 0))]
        order = np.random.default_rng([self.seed, 10**6]).permutation(len(rows))
        size = world.experiment.global_batch_size
        steps = math.ceil(len(rows) / size)
        torch.manual_seed(self.seed)
        adapted = _adapted(world.model, training.rank) if training.rank else world.model
        learns = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        begun = time.process_time()
        optimizer = torch.optim.AdamW(learns, lr=training.learning_rate or world.learning_rate, weight_decay=0.0)
        schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.03 * steps), steps)
        adapted.train()
        done = 0
        for step in range(math.ceil(steps * training.share)):
            chosen = order[step * size : (step + 1) * size]
            batch = world.collate([dict(rows[index]) for index in chosen])
            losses = adapted(**batch).token_losses
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(learns, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += len(chosen)
        cpu = time.process_time() - begun
        if training.rank:
            adapted.merge_and_unload()
            for name, parameter in world.model.named_parameters():
                parameter.requires_grad_(name in world.base)
        state = {n: p.detach().clone() for n, p in world.model.named_parameters() if n in world.base}
        flops = sum(world.flops[tasks[index]]["train"] for index in order[:done])
        return {"state": state, "cost": asdict(Cost(done, flops, cpu))}

    # ---- figures

    def answers(self, training: Training | None, task: str, count: int) -> tuple[Column, Cost]:
        """The scores of a model's own answers to a task's first `count` questions."""
        file = self.world.questions[task]
        count = min(count, len(file.records))

        def make() -> dict[str, Any]:
            self.load(training)
            self.world.model.eval()
            generation = self.world.experiment.generation
            size = None if generation.batch_size == "auto" else generation.batch_size
            settings = GenerationSettings(generation.max_new_tokens, batch_size=size, num_workers=0)
            generator = Generator(self.world.model, self.world.processor, None, settings)
            begun = time.process_time()
            answers = dict(generator.generate(file.requests[:count]))
            return {"texts": [answers[number] for number in range(count)], "cpu": time.process_time() - begun}

        held = self._stored(f"answers-{_name(training)}-{task}-{count}", make)
        metric = load_metric(self.world.experiment.tasks[task].metric[0])
        column = metric.score(self._samples(task, held["texts"])).columns[0]
        return column, Cost(0, count * self.world.flops[task]["forward"], held["cpu"])

    def losses(self, training: Training | None, task: str, count: int) -> tuple[Column, Cost]:
        """The losses of the truths of a task's first `count` questions."""
        rows = self.world.truths[task][:count]

        def make() -> dict[str, Any]:
            self.load(training)
            self.world.model.eval()
            begun = time.process_time()
            texts: list[str] = []
            for first in range(0, len(rows), BATCH):
                batch = self.world.collate([dict(row) for row in rows[first : first + BATCH]])
                counts = (batch["labels"][:, 1:] != -100).sum(1).tolist()
                with torch.no_grad():
                    parts = self.world.model(**batch).token_losses.double().split(counts)
                texts += [loss_text(float(part.sum()), len(part)) for part in parts if len(part)]
            return {"texts": texts, "cpu": time.process_time() - begun}

        held = self._stored(f"losses-{_name(training)}-{task}-{count}", make)
        column = TruthLoss().score(self._samples(task, held["texts"])).columns[0]
        return column, Cost(0, len(rows) * self.world.flops[task]["forward"], held["cpu"])

    def _samples(self, task: str, texts: list[str]) -> list[Sample]:
        records = self.world.questions[task].records
        return [
            Sample(str(number), "", (record["conversations"][1]["value"],), text, record)
            for number, (record, text) in enumerate(zip(records, texts, strict=False))
        ]

    def gradient(self, training: Training | None, rows: list[dict[str, Any]], task: str) -> tuple[Tensor, Cost]:
        """The gradient of the mean token loss of some samples, float32[parameters]."""
        self.load(training)
        model = self.world.model
        model.train()
        model.zero_grad()
        begun = time.process_time()
        tokens = 0
        for first in range(0, len(rows), 8):
            losses = model(**self.world.collate([dict(row) for row in rows[first : first + 8]])).token_losses
            losses.sum().backward()
            tokens += len(losses)
        learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
        flat = torch.cat([p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in learns]) / tokens
        model.zero_grad()
        cpu = time.process_time() - begun
        return flat, Cost(0, len(rows) * self.world.flops[task]["train"], cpu)


def _name(training: Training | None) -> str:
    return "base" if training is None else training.key


def _adapted(model: Any, rank: int) -> Any:
    """The model with fresh adapters on its language part's linear layers; its projector learns in full."""
    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "language_model" in n]
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers))
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name or "multi_modal_projector" in name)
    return adapted
