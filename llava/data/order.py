"""The order in which samples are trained on.

Legend: n samples, G samples of one optimizer step over all processes and accumulation steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ModalityLengthOrder:
    """LLaVA's `--group_by_modality_length`: each optimizer step holds samples with images, or samples without.

    Steps are drawn at random; within one, samples lie in order of length, longest first, so that the processes' shares
    of it are even and little is padded. What does not fill a step comes last, both kinds together.

    The order depends on the seed, the epoch and G alone, not on how many processes share a step.
    """

    def __init__(self, lengths: ArrayLike, has_image: ArrayLike, global_batch_size: int, seed: int) -> None:
        """`lengths` int[n], `has_image` bool[n]."""
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size must be positive, not {global_batch_size}")
        self.lengths = np.asarray(lengths)
        self.has_image = np.asarray(has_image, dtype=bool)
        if self.lengths.shape != self.has_image.shape:
            raise ValueError(f"{len(self.lengths)} lengths but {len(self.has_image)} image flags")
        self.global_batch_size = global_batch_size
        self.seed = seed

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """A permutation int64[n] of the samples."""
        random = np.random.default_rng((self.seed, epoch))
        size = self.global_batch_size
        steps: list[NDArray[np.int64]] = []
        rest: list[NDArray[np.int64]] = []
        for kind in (self.has_image, ~self.has_image):
            shuffled = random.permutation(np.flatnonzero(kind))
            whole = len(shuffled) // size * size
            steps.extend(shuffled[:whole].reshape(-1, size))
            rest.append(shuffled[whole:])
        last = random.permutation(np.concatenate(rest))
        ordered = [steps[i] for i in random.permutation(len(steps))]
        ordered += [last[start : start + size] for start in range(0, len(last), size)]
        batches = [batch[np.argsort(-self.lengths[batch], kind="stable")] for batch in ordered]
        return np.concatenate([np.empty(0, np.int64), *batches]).astype(np.int64)
