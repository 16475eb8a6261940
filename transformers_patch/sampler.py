"""The order of samples, and an epoch's last step in which no sample is counted twice.

Every rank must run the same number of micro-batches. Stock data loaders reach that by repeating samples, which then
weigh double. Here the epoch is filled up with blanks instead: samples whose labels are all ignored.
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
"""epoch → int64[number of samples], a permutation that is pure in the epoch (and so the same on every rank)."""


def shuffled(num_samples: int, seed: int) -> EpochOrder:
    """Return the uniformly random order of each epoch."""
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(num_samples)


def sequential(num_samples: int) -> EpochOrder:
    """Return the order of the data itself, for evaluation."""
    return lambda epoch: np.arange(num_samples)


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
    """

    def __init__(
        self, order: EpochOrder, num_samples: int, batch_size: int, num_ranks: int, step_size: int | None = None
    ) -> None:
        self.order = order
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_ranks = num_ranks
        self.step_size = step_size or num_samples
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, max(1, self.step_size))
        return whole * self._batches_of(self.step_size) + self._batches_of(rest)

    def _batches_of(self, samples: int) -> int:
        """The batches, over all ranks, that hold so many samples."""
        return -(-samples // (self.batch_size * self.num_ranks)) * self.num_ranks

    def __iter__(self) -> Iterator[list[int]]:
        indices = self.order(self.epoch)
        for first in range(0, len(indices), max(1, self.step_size)):
            step = indices[first : first + self.step_size]
            blanks = self._batches_of(len(step)) * self.batch_size - len(step)
            padded = np.concatenate([step, self.num_samples + np.arange(blanks)])
            for start in range(0, len(padded), self.batch_size):
                yield padded[start : start + self.batch_size].tolist()
