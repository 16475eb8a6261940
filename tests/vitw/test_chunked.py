"""The chunked cross-entropy against autograd on full logits."""

import pytest
import torch
import torch.nn.functional as F

from transformers_patch.chunked import ChunkedCrossEntropy


def inputs(bias: bool, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    offset = torch.randn(11, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    return rows, weight, offset, torch.randint(0, 11, (7,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(chunk, bias):
    rows, weight, offset, targets = inputs(bias)
    leaves = [t for t in (rows, weight, offset) if t is not None]
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)  # a weight of its own for each token
    expected = F.cross_entropy(F.linear(rows, weight, offset), targets, reduction="none")
    actual = ChunkedCrossEntropy.apply(rows, weight, offset, targets, chunk)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(
        torch.autograd.grad(actual, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(a, e)


def test_frozen_head_and_no_tokens():
    rows, weight, _, targets = inputs(False)
    weight.requires_grad_(False)
    losses = ChunkedCrossEntropy.apply(rows[:0], weight, None, targets[:0], 3)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert not rows.grad.any()


def test_losses_stay_float32_under_bfloat16_autocast():
    """Autocast multiplies in bfloat16; sums over the vocabulary and the losses do not lose their digits to it."""
    rows, weight, _, targets = inputs(False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = ChunkedCrossEntropy.apply(rows, weight, None, targets, 3)
        logits = F.linear(rows, weight)
    assert logits.dtype == torch.bfloat16
    assert losses.dtype == torch.float32
    expected = F.cross_entropy(logits.float(), targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    upstream = torch.linspace(0.5, 2, 7)
    actual = torch.autograd.grad(losses, [rows, weight], upstream)
    for a, e in zip(actual, torch.autograd.grad(expected, [rows, weight], upstream), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e, atol=2e-2, rtol=2e-2)
