"""Differences between the results of two topologies, for the self-test, certify and the tests."""

import math
from collections.abc import Mapping

from torch import Tensor


def relative_difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| with Frobenius norms, in fp64; 0 for two zero tensors, infinite if the shapes differ.

    Not entry by entry: AdamW divides a gradient by its own size, so an entry whose gradient is only a
    rounding error moves by the sign of that error on every topology (docs/decisions/0003).
    """
    if a.shape != b.shape:
        return math.inf
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300))


def differences(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Name -> relative difference, in the order of the reference; infinite for a name that only one of them has."""
    both = {name: relative_difference(ours[name], b) if name in ours else math.inf for name, b in reference.items()}
    return both | {name: math.inf for name in ours if name not in reference}


def largest(by_name: Mapping[str, float]) -> tuple[str, float]:
    """The name with the largest difference, and that difference; NaN is larger than anything."""
    return max(by_name.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1], default=("nothing", 0.0))
