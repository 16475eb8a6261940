"""Rates, batch and length for a new experiment: the paper's where the data and the model are large enough for them.

The floors are those that `visatb plan` advises by. One rate serves all tasks, as in the paper.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from visatb.experiment.schema import Experiment, SubsetRates, round_to_count
from visatb.experiment.training import ENOUGH_STEPS, LARGE_SAMPLES, MINI_SAMPLES, TRAINING_DEFAULTS

# From the paper's, which comes first, to the furthest that still serves: a mini model of more than a quarter of the
# data costs as much as a large one, and a step of fewer than 8 samples is mostly noise.
_MINI_RATES = tuple(Fraction(1, part) for part in (round(1 / SubsetRates().mini), 16, 8, 4))
_BATCHES = (Experiment.model_fields["global_batch_size"].default, 64, 32, 16, 8)
_LARGE_RATES = (Fraction(1, 4), Fraction(1, 2))  # else the whole


@dataclass(frozen=True)
class Sizes:
    """Sampling rates as they are written, samples of an optimizer step, and why each was chosen."""

    large: str
    mini: str
    batch: int
    why_large: str
    why_mini: str
    why_batch: str


def choose_sizes(totals: Mapping[str, int], balanced: Collection[str]) -> Sizes:
    """The sizes that fit tasks of so many training records; `balanced` are those that get a λ.

    The mini rate goes by the task in the middle, so that one small task does not make all minis large; the large rate
    by the smallest task; the batch by the steps of the mini model, which is trained on the minis of all tasks.
    """
    counts = [totals[task] for task in balanced] or list(totals.values())
    middle, least = statistics.median_low(counts), min(counts)
    mini = next((rate for rate in _MINI_RATES if _part(rate, middle) >= MINI_SAMPLES), _MINI_RATES[-1])
    together = sum(_part(mini, total) for total in totals.values())
    batch = next((size for size in _BATCHES if math.ceil(together / size) >= ENOUGH_STEPS), _BATCHES[-1])
    steps = math.ceil(together / batch)
    floor = max(LARGE_SAMPLES, (ENOUGH_STEPS - 1) * batch + 1)
    large = next((rate for rate in _LARGE_RATES if _part(rate, least) >= floor), Fraction(1))
    return Sizes(
        large=str(large) if large < 1 else "1.0",
        mini=str(mini),
        batch=batch,
        why_large=f"{_samples(large, counts)}; {LARGE_SAMPLES:,} are enough",
        why_mini=f"{_samples(mini, counts)}; {MINI_SAMPLES:,} are enough"
        + _note(_part(mini, middle) < MINI_SAMPLES, "the data are few, and a larger part would cost too much"),
        why_batch=f"samples a step: {steps:,} steps of the mini model; {ENOUGH_STEPS} are enough"
        + _note(steps < ENOUGH_STEPS, "the data are few: consider more epochs")
        + _note(batch < _BATCHES[0] and steps >= ENOUGH_STEPS, f"the paper's {_BATCHES[0]} would be too few of them"),
    )


def longest_sequence(model: Path) -> tuple[int, str]:
    """The longest training sequence in tokens, and why: the default, or the model's positions where they are fewer."""
    default = int(TRAINING_DEFAULTS["model_max_length"])
    positions = _positions(model)
    if positions is None:
        return default, "tokens; at most the model's positions, which could not be read here"
    if positions < default:
        return positions, f"tokens: all positions of the model; the paper's {default} needs more"
    return default, f"tokens; the model has {positions} positions"


def _positions(model: Path) -> int | None:
    """The positions of a saved model's language part; None where its configuration is not there or does not tell."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        positions = (config.get("text_config") or config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return positions if isinstance(positions, int) and positions > 0 else None


def _part(rate: Fraction, total: int) -> int:
    return round_to_count(float(rate), total)


def _samples(rate: Fraction, counts: list[int]) -> str:
    low, high = (_part(rate, total) for total in (min(counts), max(counts)))
    return f"{low:,} samples a task" if low == high else f"{low:,} to {high:,} samples a task"


def _note(holds: bool, text: str) -> str:
    return f" ({text})" if holds else ""
