"""An epoch's batches: every sample once, blanks in the rest, and as many batches for each rank."""

import itertools

import pytest

from transformers_patch.sampler import EpochBatchSampler, sequential


@pytest.mark.parametrize(
    ("samples", "size", "ranks", "step"), itertools.product((1, 7, 12, 41), (1, 3, 4), (1, 2, 3), (None, 5, 14))
)
def test_every_sample_once_and_every_rank_as_often(samples, size, ranks, step):
    sampler = EpochBatchSampler(sequential(samples), samples, size, ranks, step)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert len(batches) % ranks == 0
    assert {len(batch) for batch in batches} == {size}
    drawn = [index for batch in batches for index in batch]
    assert [index for index in drawn if index < samples] == list(range(samples))
    steps = -(-samples // (step or samples))
    assert len(drawn) - samples < steps * size * ranks  # no more blanks than a step needs
