"""How far a result may be from its reference: one table for all tests.

These numbers are never relaxed to make a test pass: a result outside them is a bug, or the reference is.
"""

import torch
from torch import Tensor

EXACT = 0.0
"""Data movement, and anything computed twice: equal bit for bit."""
SIMPLE = 1e-5
"""One operation, or a few, in fp32 against fp64 or another library (relative)."""
COMPLEX = 1e-4
"""A gradient through many operations in fp32 (relative)."""
BF16 = 2.0**-7
"""A result in bf16, whose last bit is 2^-8 of the value: two roundings (relative)."""


def assert_within(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert equal shapes, finite entries, and no entry farther from the expected one than tolerance * max |expected|.

    The tolerance is relative to the largest entry, not to each one, since a sum that cancels keeps the rounding of
    its terms. If all of `expected` is zero, `actual` must be too.

    Raises:
        AssertionError: a condition does not hold; the message gives the difference.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), "not finite"
    if actual.numel() == 0:
        return
    scale = float(expected.detach().double().abs().max())
    difference = float((actual.detach().double() - expected.detach().double()).abs().max())
    assert difference <= tolerance * scale, f"difference {difference:.3g}, allowed {tolerance:.3g} * {scale:.3g}"
