"""Arithmetic on a sample's tokens: cutting it to length, and giving each image its run of placeholders.

Legend: s tokens with one placeholder per image, S tokens with each placeholder repeated, n images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llava.constants import IGNORE_INDEX

T = TypeVar("T", np.int32, np.bool_)


def expanded_length(num_tokens: int, image_tokens: Sequence[int]) -> int:
    """S of a sample of `num_tokens` = s whose images take `image_tokens` placeholders each."""
    return num_tokens - len(image_tokens) + sum(image_tokens)


def cut_to_length(
    input_ids: NDArray[np.int32],
    image_tokens: Sequence[int],
    image_ids: NDArray[np.int32],
    image_token_id: int,
    max_length: int,
) -> tuple[int, int]:
    """How many of the s tokens and of the n images stay so that S is at most `max_length`.

    An image stays whole, with the tokens of `image_ids` around its placeholder, or goes: where the limit falls inside
    one, the sample ends before it.
    """
    if expanded_length(len(input_ids), image_tokens) <= max_length:
        return len(input_ids), len(image_tokens)
    widths = np.ones(len(input_ids), dtype=np.int64)
    indices = np.flatnonzero(input_ids == image_token_id)
    widths[indices] = np.asarray(image_tokens, dtype=np.int64)
    kept = int(np.searchsorted(np.cumsum(widths), max_length, side="right"))
    before = int(np.flatnonzero(image_ids == image_token_id)[0])
    after = len(image_ids) - before - 1
    for index in indices:
        if index - before < kept <= index + after:
            kept = int(index) - before
    return kept, int((indices < kept).sum())


def expand_images(
    tokens: NDArray[T], is_image: NDArray[np.bool_], image_tokens: Sequence[int] | NDArray[np.int32]
) -> NDArray[T]:
    """Repeat each token where `is_image` by its image's count; `tokens` may be ids or labels: T[s] → T[S]."""
    if not len(image_tokens):
        return tokens
    widths = np.ones(len(tokens), dtype=np.int64)
    widths[is_image] = np.asarray(image_tokens, dtype=np.int64)
    return np.repeat(tokens, widths)


def place_images(
    input_ids: NDArray[np.int32], is_image: NDArray[np.bool_], runs: Sequence[NDArray[np.int32]]
) -> NDArray[np.int32]:
    """Put each image's tokens where its placeholder is: int32[s] → int32[S]."""
    expanded = expand_images(input_ids, is_image, [len(run) for run in runs])
    if runs:
        expanded[expand_images(is_image, is_image, [len(run) for run in runs])] = np.concatenate(runs)
    return expanded


def target_runs(labels: NDArray[np.int32], starts: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Where targets begin and end in each sample, a fraction of the size of the labels.

    Args:
        labels: int32[Σs] of n samples one after the other; the first of each sample is no target.
        starts: int64[n + 1], where the samples begin, and the last one ends.

    Returns:
        [begin, end, begin, end, …] within their samples, one sample after the other, and how many runs each sample
        has, int64[n].
    """
    is_target = np.concatenate([[False], labels != IGNORE_INDEX, [False]])
    edges = np.flatnonzero(is_target[1:] != is_target[:-1]).reshape(-1, 2)
    sample = np.searchsorted(starts, edges[:, 0], side="right") - 1
    within = (edges - starts[sample][:, None]).astype(np.int32)
    return within.reshape(-1), np.bincount(sample, minlength=len(starts) - 1)


def labels_from_runs(input_ids: NDArray[np.int32], runs: NDArray[np.int32]) -> NDArray[np.int32]:
    """The labels int32[s] that `target_runs` was made from."""
    labels = np.full_like(input_ids, IGNORE_INDEX)
    for begin, end in runs.reshape(-1, 2):
        labels[begin:end] = input_ids[begin:end]
    return labels
