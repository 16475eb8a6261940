"""Modality and length order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.order import ModalityLengthOrder


@settings(max_examples=100, deadline=None)
@given(
    flags=st.lists(st.booleans(), max_size=70),
    size=st.integers(1, 9),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_sample_once_and_steps_of_one_kind(flags, size, seed, epoch):
    lengths = np.random.default_rng(seed).integers(1, 100, len(flags))
    order = ModalityLengthOrder(lengths, flags, size, seed)(epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(flags)))
    has_image = np.array(flags, dtype=bool)[order]
    whole = int(np.sum(flags)) // size + (len(flags) - int(np.sum(flags))) // size
    for step in range(-(-len(flags) // size)):
        part = slice(step * size, (step + 1) * size)
        assert (np.diff(lengths[order][part]) <= 0).all()
        if step < whole:
            assert len(set(has_image[part].tolist())) == 1


def test_pure_in_seed_and_epoch():
    lengths, flags = np.arange(200) % 37, np.arange(200) % 3 > 0
    order = ModalityLengthOrder(lengths, flags, 8, seed=1)
    first, second = order(0), order(1)
    assert np.array_equal(order(0), first)
    assert not np.array_equal(first, second)
    assert not np.array_equal(ModalityLengthOrder(lengths, flags, 8, seed=2)(0), first)
    assert np.array_equal(ModalityLengthOrder(lengths, flags, 8, seed=1)(1), second)


def test_kinds_are_mixed_over_the_epoch():
    flags = np.arange(800) < 400
    order = ModalityLengthOrder(np.ones(800), flags, 8, seed=0)(0)
    halves = flags[order].reshape(2, 400).mean(axis=1)
    assert (abs(halves - 0.5) < 0.2).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="must be positive"):
        ModalityLengthOrder([1], [True], 0, 0)
    with pytest.raises(ValueError, match="2 lengths but 1 image flags"):
        ModalityLengthOrder([1, 2], [True], 1, 0)
