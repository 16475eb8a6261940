"""Whether training fits a GPU, and how long it takes: reckoned from the model's shape, before anything is rented.

Of one GPU, in bytes. Legend: P parameters, N processes that share a training, B samples of a micro-batch, S tokens of a
sample, h, i, L, V as in `visatb.experiment.shapes`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from visatb.experiment.schema import Experiment
from visatb.experiment.shapes import Shape
from visatb.experiment.training import TRAINING_DEFAULTS, batch_split, training_arguments

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU: usable memory in bytes, dense bfloat16 operations a second at its peak, bytes a second."""

    name: str
    memory: float
    peak: float
    bandwidth: float


CARDS = {
    "h200-141": Card("H200 141 GB", 139.8 * GIB, 989e12, 4.8e12),
    "h100-80": Card("H100 80 GB (SXM)", 79.1 * GIB, 989e12, 3.35e12),
    "a100-80": Card("A100 80 GB", 79.1 * GIB, 312e12, 2.0e12),
    "a100-40": Card("A100 40 GB", 39.4 * GIB, 312e12, 1.55e12),
    "l40s-48": Card("L40S 48 GB", 44.5 * GIB, 362e12, 0.86e12),
    "a6000-48": Card("RTX A6000 48 GB", 47.5 * GIB, 155e12, 0.77e12),
    "rtx4090-24": Card("RTX 4090 24 GB", 23.5 * GIB, 165e12, 1.0e12),
    "a10-24": Card("A10 24 GB", 22.5 * GIB, 125e12, 0.6e12),
}
"""Card by name: the makers' data sheets, memory as the driver reports it."""

PEAK_SHARE = 0.4
"""Of a card's peak, what training is reckoned to reach of the operations that are really done."""
# Beside what is counted: CUDA's context and the buffers of communication, and what ZeRO-3 gathers ahead.
_CONTEXT, _LIVE_PARAMETERS = 2.0 * GIB, 1e9
# transformers_patch.forward: `auto` holds so many logits of targets about three times over, in float32.
_MOST_LOGITS = 2**27


@dataclass(frozen=True)
class Setup:
    """How a stage is trained, as far as memory and time depend on it. `stage`: of ZeRO, 0 without DeepSpeed.

    `rank`: of LoRA, 0 for full training. `length`: the longest sample in tokens. `bits`: of a weight of the language
    part, 16 where it is not quantised. `projector_only`: nothing else learns. `beyond`: settings that are not reckoned
    with, and which may take less.
    """

    processes: int
    micro_batch: int
    stage: int
    checkpointing: bool
    half: bool
    rank: int
    length: int
    bits: int = 16
    projector_only: bool = False
    beyond: tuple[str, ...] = ()

    def shared_from(self, stage: int) -> int:
        """Among how many processes that is divided which a ZeRO stage divides."""
        return self.processes if self.stage >= stage else 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU by what holds them."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    other: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True)
class Fit:
    """One stage on a card: what it takes, whether that fits, and, where not, what would."""

    stage: str
    setup: Setup
    memory: Memory
    fits: bool
    remedy: str | None = None


def setup_of(experiment: Experiment, stage: str, processes: int) -> Setup:
    """The setup of a stage's training on so many processes."""
    arguments = {**TRAINING_DEFAULTS, **training_arguments(experiment, stage)}
    micro, _ = batch_split(experiment, arguments, processes)
    zero = _zero(arguments.get("deepspeed"), experiment.source.parent)
    adam = "adamw" in str(arguments.get("optim", "adamw")) and "bit" not in str(arguments.get("optim", ""))
    beyond = {
        f"optim: {arguments.get('optim')}": not adam,
        "offloading": any("offload" in key for key in zero),
        "a freed vision tower": bool(arguments.get("unfreeze_mm_vision_tower")),
    }
    return Setup(
        processes=processes,
        micro_batch=micro,
        stage=int(str(zero.get("stage", 0))),
        checkpointing=bool(arguments.get("gradient_checkpointing")),
        half=bool(arguments.get("bf16") or arguments.get("fp16")),
        rank=int(str(arguments.get("lora_r", 64))) if arguments.get("lora_enable") else 0,
        length=int(str(arguments["model_max_length"])),
        bits=int(str(arguments.get("bits", 16))),
        projector_only=bool(arguments.get("tune_mm_mlp_adapter") or arguments.get("freeze_backbone")),
        beyond=tuple(name for name, holds in beyond.items() if holds),
    )


def _zero(config: Any, folder: Path) -> dict[str, Any]:
    """The ZeRO part of a DeepSpeed configuration, a file or its content; stage 3 where it cannot be read."""
    if not config:
        return {}
    try:
        content = config if isinstance(config, dict) else json.loads((folder / str(config)).read_text(encoding="utf-8"))
        return dict(content["zero_optimization"])
    except (OSError, ValueError, LookupError, TypeError):
        return {"stage": 3}


def memory_of(shape: Shape, setup: Setup) -> Memory:
    """What a training takes on each GPU, at micro-batches of the longest samples."""
    decoder, deepspeed = shape.decoder, setup.stage > 0
    learning = shape.learning
    if setup.rank or setup.projector_only:
        learning = shape.projector + (_adapters(shape, setup.rank) if setup.rank else 0)
    held_half = setup.half and (deepspeed or setup.rank > 0 or setup.projector_only)
    width: float = 2 if held_half else 4
    # Autocast keeps a copy in half precision of each float32 weight that learns, until the step's backward is done.
    copies = 2 * learning if setup.half and not held_half else 0
    language = decoder.parameters * (setup.bits / 8 if setup.bits < 16 else width)
    tokens = setup.micro_batch * setup.length
    layer = decoder.kept_in_layer * 2 * tokens
    if setup.checkpointing:  # each layer's input; one layer at a time, with the gradients of its widest two values
        activations = decoder.layers * decoder.hidden * 2 * tokens + layer + 2 * decoder.intermediate * 2 * tokens
    else:
        activations = decoder.layers * layer
    logits = min(tokens * decoder.vocabulary, _MOST_LOGITS) * 4 * 3
    gathered = min(_LIVE_PARAMETERS, shape.parameters) * 2 if setup.stage == 3 else 0
    return Memory(
        weights=(language + (shape.parameters - decoder.parameters) * width) / setup.shared_from(3) + copies,
        # DDP sums gradients in buckets of its own.
        gradients=learning * (2 if held_half and deepspeed else 4) / setup.shared_from(2)
        + (learning * 4 if not deepspeed and setup.processes > 1 else 0),
        optimizer=learning * (12 if deepspeed else 8) / setup.shared_from(1),
        activations=activations * (1 if setup.half else 2),
        logits=float(logits),
        other=_CONTEXT + gathered,
    )


def _adapters(shape: Shape, rank: int) -> int:
    """Parameters of LoRA's adapters on the language part's matrices."""
    decoder = shape.decoder
    h, i = decoder.hidden, decoder.intermediate
    queries, keys = decoder.heads * decoder.head_size, decoder.key_heads * decoder.head_size
    return rank * decoder.layers * (2 * (h + queries) + 2 * (h + keys) + 3 * (h + i))


def train_flops(shape: Shape, setup: Setup, tokens: float, targets: float, images: float = 1.0) -> float:
    """Operations of a training sample that are really done: forward, backward, what checkpointing computes again.

    The frozen tower is computed once. Without gradients of the base weights a backward costs one forward.
    """
    forward = shape.decoder.forward_flops(tokens, targets)
    passes = 2 if setup.rank or setup.projector_only else 3
    again = shape.decoder.forward_flops(tokens, 0) if setup.checkpointing else 0
    return passes * forward + again + images * shape.tower.forward_flops


def fit(experiment: Experiment, shape: Shape, card: Card, stage: str, processes: int) -> Fit:
    """Whether a stage's training fits the card."""
    setup = setup_of(experiment, stage, processes)
    memory = memory_of(shape, setup)
    if memory.total <= card.memory:
        return Fit(stage, setup, memory, True)
    remedy = next((text for text, other in _others(setup) if memory_of(shape, other).total <= card.memory), None)
    return Fit(stage, setup, memory, False, remedy or "nothing does on this card: take larger or more of them, or LoRA")


def _others(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Setups that need less, the cheapest change first, and each in the words of an experiment file."""
    stages = [stage for stage in (2, 3) if stage > setup.stage and setup.processes > 1]
    for names, base in (
        ([], setup),
        (["gradient_checkpointing: true"], replace(setup, checkpointing=True)),
        *(
            (
                ["gradient_checkpointing: true", "bf16: true", f"deepspeed: scripts_visatb/zero{stage}.json"],
                replace(setup, checkpointing=True, half=True, stage=stage),
            )
            for stage in stages
        ),
        (
            ["lora_enable: true", "bf16: true", "gradient_checkpointing: true"],
            replace(setup, rank=setup.rank or 64, half=True, checkpointing=True),
        ),
    ):
        micro = base.micro_batch
        while micro >= 1:
            changed = replace(base, micro_batch=micro)
            said = [*names, *([f"per_device_train_batch_size: {micro}"] if micro < setup.micro_batch else [])]
            if changed != setup:
                yield ", ".join(said), changed
            micro //= 2


def found_card() -> tuple[Card, int] | None:
    """The card of this machine's first GPU, with the memory that the driver reports, and how many there are.

    None without any, or where it is none of CARDS.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60).stdout.splitlines()
    name, _, mebibytes = (lines or [""])[0].rpartition(",")
    words = re.split(r"[\s-]+", name.lower())
    memory = 0.99 * 2**20 * float(mebibytes) if mebibytes.strip().isdigit() else 0.0
    for key, card in CARDS.items():
        if key.partition("-")[0].removeprefix("rtx") in words and abs(memory - card.memory) < 0.2 * card.memory:
            return replace(card, memory=memory), len(lines)
    return None


def seconds(flops: float, card: Card, processes: int) -> float:
    """How long so many operations take on so many cards, at PEAK_SHARE of their peak."""
    return flops / (card.peak * PEAK_SHARE * processes)
