"""The order of samples, and an epoch's last step in which no sample is counted twice.

Every rank must run the same number of micro-batches. Stock data loaders reach that by repeating samples, which then
weigh double. Here the epoch is filled up with blanks instead: samples whose labels are all ignored.

Where batches have no padding, the samples of an optimizer step are dealt to the ranks so that each has nearly the same
number of tokens: the others wait for the slowest. The weighted loss does not depend on who computes a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from transformers_patch.loss import IGNORE_INDEX

EpochOrder = Callable[[int], npt.NDArray[np.int64]]
"""epoch → int64[number of samples], their order, pure in the epoch (and so the same on every rank).

All but `WeightedOrder` give a permutation.
"""


def shuffled(num_samples: int, seed: int) -> EpochOrder:
    """Return the uniformly random order of each epoch."""
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(num_samples)


def sequential(num_samples: int) -> EpochOrder:
    """Return the order of the data itself, for evaluation."""
    return lambda epoch: np.arange(num_samples)


class WeightedOrder:
    """λ as a sampling ratio: samples are drawn, and the plain mean over a step's tokens has the weighted gradient.

    Legend: n samples, G of them in an optimizer step; sample i has T_i valid target tokens, g_i is the gradient of its
    summed token losses, and λ_i the weight of its task. Over all data, Equation 2 has the gradient

        g* = Σ_i λ_i g_i / Σ_i λ_i T_i

    A step of drawn samples b without weights has Σ_b g / Σ_b T, whose divisor is the step's own count of tokens. Drawn
    by p_i = λ_i / Σ λ, both sums are right in expectation, but their ratio only where G is large. Therefore one sample
    of each step is drawn by q_i = λ_i T_i / Σ λ T (Lahiri 1951, Midzuno 1952). A step b then has the probability
    P(b) · Σ_b T / (G μ), where P is that of drawing by p alone and μ = Σ p_i T_i. The divisor cancels:

        E[Σ_b g / Σ_b T] = Σ_b P(b) Σ_b g / (G μ) = Σ_i p_i g_i / μ = g*

    This is exact for every G. The other G - 1 samples draw their tasks independently. Within a task they go through its
    samples in random order, each once, before any comes again; the step's first sample is passed over, as drawing
    without replacement needs it. Only a step in which such a pass ends is off, by the order of 1 / samples of the task.
    All of it holds in expectation over the seeds: the tokens of one step or epoch are as the draws have them.

    Args:
        weights: λ float[K] of the tasks.
        task_ids: int[n], the task of each sample in 0 … K-1.
        tokens: int[n], the valid target tokens of each sample.
        step_size: G; an epoch's last step has what is left.
        seed: of the draws, with the epoch.

    Raises:
        ValueError: weights or counts that cannot be, or nothing left to draw.
    """

    def __init__(
        self, weights: npt.ArrayLike, task_ids: npt.ArrayLike, tokens: npt.ArrayLike, step_size: int, seed: int
    ) -> None:
        given = np.asarray(weights, dtype=np.float64)
        self.task_ids = np.asarray(task_ids, dtype=np.int64)
        counts = np.asarray(tokens, dtype=np.int64)
        if self.task_ids.shape != counts.shape:
            raise ValueError(f"{self.task_ids.size} task ids, but {counts.size} counts of tokens")
        if not np.isfinite(given).all() or (given < 0).any() or (counts < 0).any():
            raise ValueError("weights must be finite, and neither they nor counts of tokens negative")
        if step_size < 1:
            raise ValueError(f"step_size must be at least 1, got {step_size}")
        of_samples = given[self.task_ids]
        if not (of_samples * counts).any():
            raise ValueError("no sample with a weight above 0 has tokens to learn: nothing is left to draw")
        self.by_weight = of_samples / of_samples.sum()
        """p float64[n]: the probability of a sample at all places of a step but the first."""
        self.by_tokens = of_samples * counts / (of_samples * counts).sum()
        """q float64[n]: the probability of a sample at the first place."""
        self.step_size = step_size
        self.seed = seed

    def __call__(self, epoch: int) -> npt.NDArray[np.int64]:
        """The samples int64[n] of an epoch, G by G: as many as there are, some several times and others not at all."""
        random = np.random.default_rng([self.seed, epoch])
        size = len(self.task_ids)
        order = np.empty(size, dtype=np.int64)
        firsts = random.choice(size, -(-size // self.step_size), p=self.by_tokens)
        shares = np.bincount(self.task_ids, weights=self.by_weight)
        tasks = random.choice(len(shares), size, p=shares / shares.sum())
        passes = [_passes(np.flatnonzero(self.task_ids == task), random) for task in range(len(shares))]
        for place, task in enumerate(tasks.tolist()):
            first = firsts[place // self.step_size]
            if place % self.step_size == 0:
                order[place] = first
                continue
            order[place] = next(passes[task])
            if order[place] == first:
                order[place] = next(passes[task])
        return order


def _passes(samples: npt.NDArray[np.int64], random: np.random.Generator) -> Iterator[int]:
    """The samples in random order, then once more in another one, and so on."""
    while True:
        yield from random.permutation(samples).tolist()


class PaddedDataset(Dataset[dict[str, Any]]):
    """`dataset` followed by as many blanks as asked for: index len(dataset) + i is sample 0 with all labels ignored."""

    def __init__(self, dataset: Dataset[dict[str, Any]]) -> None:
        self.dataset = dataset
        self.num_samples = len(dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < self.num_samples:
            return self.dataset[index]
        sample = self.dataset[0]
        return {**sample, "labels": torch.full_like(torch.as_tensor(sample["labels"]), IGNORE_INDEX)}


class EpochBatchSampler(Sampler[list[int]]):
    """Batches of `batch_size` indices in the order of the epoch, filled up with blanks to a multiple of `num_ranks`.

    Rank r of R takes batches r, r + R, … (the data loader's sharding), so the samples of an optimizer step are the
    same for 1 rank × accumulation 4 and 2 ranks × accumulation 2. With `step_size` G every step has G samples of its
    own, and is filled up by itself: 6 ranks × 2 batches of 11 take 128 samples and 4 blanks.

    Args:
        lengths: int[num_samples], tokens of each sample, where batches have no padding. The samples of a step are then
            dealt to all batches of all ranks evenly. With padding a batch costs what its longest sample does, and the
            order of the epoch decides.
    """

    def __init__(
        self,
        order: EpochOrder,
        num_samples: int,
        batch_size: int,
        num_ranks: int,
        step_size: int | None = None,
        lengths: npt.ArrayLike | None = None,
    ) -> None:
        self.order = order
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_ranks = num_ranks
        self.step_size = step_size or num_samples
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, max(1, self.step_size))
        return whole * self._batches_of(self.step_size) + self._batches_of(rest)

    def steps(self) -> list[npt.NDArray[np.int64]]:
        """The samples of each optimizer step of the epoch, over all ranks and without blanks."""
        indices = self.order(self.epoch)
        size = max(1, self.step_size)
        return [indices[first : first + size] for first in range(0, len(indices), size)]

    def batches_of_step(self, step: int) -> int:
        """The batches that each rank takes in step `step` of an epoch."""
        samples = min(self.step_size, self.num_samples - step * self.step_size)
        return self._batches_of(samples) // self.num_ranks

    def _batches_of(self, samples: int) -> int:
        """The batches, over all ranks, that hold so many samples."""
        return -(-samples // (self.batch_size * self.num_ranks)) * self.num_ranks

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            blanks = self._batches_of(len(step)) * self.batch_size - len(step)
            padded = np.concatenate([step, self.num_samples + np.arange(blanks)])
            batches = padded.reshape(-1, self.batch_size)
            if self.lengths is not None:
                # A blank is sample 0 once more.
                lengths = self.lengths[np.where(padded < self.num_samples, padded, 0)]
                batches = padded[deal(lengths, self.num_ranks, len(batches) // self.num_ranks)]
            yield from batches.tolist()


def deal(lengths: npt.ArrayLike, num_ranks: int, num_batches: int = 1) -> npt.NDArray[np.int64]:
    """Deal the samples of a step to R ranks so that each has nearly the same number of tokens, and so its A batches.

    Args:
        lengths: int[R × A × b], tokens of the samples.
        num_ranks: R.
        num_batches: A, the batches of a rank.

    Returns:
        int64[A × R, b], places in `lengths`; rank r takes rows r, r + R, …, the one with the most tokens first.
    """
    lengths = np.asarray(lengths)
    shares = _in_rounds(lengths, np.arange(len(lengths)), num_ranks)
    batches = np.stack([_in_rounds(lengths, share, num_batches) for share in shares], axis=1)  # [A, R, b]
    most_first = np.argsort(-lengths[batches].sum(-1), axis=0, kind="stable")
    return np.take_along_axis(batches, most_first[:, :, None], axis=0).reshape(num_ranks * num_batches, -1)


def _in_rounds(lengths: npt.NDArray[np.int64], samples: npt.NDArray[np.int64], hands: int) -> npt.NDArray[np.int64]:
    """Deal `samples` in rounds, longest first; of a round the longest goes to the hand with the fewest tokens."""
    rounds = samples[np.argsort(-lengths[samples], kind="stable")].reshape(-1, hands)
    dealt = np.empty(rounds.shape[::-1], dtype=np.int64)
    totals = np.zeros(hands, dtype=np.int64)
    for number, cards in enumerate(rounds):
        fewest = np.argsort(totals, kind="stable")
        dealt[fewest, number] = cards
        totals[fewest] += lengths[cards]
    return dealt
