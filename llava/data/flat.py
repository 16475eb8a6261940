"""Many samples one after the other in flat arrays, so that a few numpy calls do the work for all of them.

Legend: n samples, s tokens of one sample with one placeholder per image, Σs those of all samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class FlatSamples(NamedTuple):
    """Token ids and labels of n samples, both int32[Σs]; sample i lies at `starts[i]` to `starts[i + 1]`."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    starts: NDArray[np.int64]

    def sample(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids and labels int32[s] of one sample, as views."""
        begin, end = self.starts[number], self.starts[number + 1]
        return self.input_ids[begin:end], self.labels[begin:end]

    def lengths(self) -> NDArray[np.int64]:
        """s of each sample."""
        return np.diff(self.starts)

    def heads(self, kept: NDArray[np.int64]) -> FlatSamples:
        """The first `kept[i]` tokens of each sample i."""
        if np.array_equal(kept, self.lengths()):
            return self
        places = ranges(self.starts[:-1], kept)
        return FlatSamples(self.input_ids[places], self.labels[places], starts_of(kept))


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where stretches of such lengths begin when they lie end to end, and where the last one ends: int64[n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def ranges(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`begins[i]`, `begins[i] + 1`, … of each i, `lengths[i]` of them, one after the other: int64[Σ lengths]."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def sums(values: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of `values` in each stretch `starts[i]` to `starts[i + 1]`: int64[n]; 0 where it is empty."""
    return np.diff(starts_of(values)[starts])
