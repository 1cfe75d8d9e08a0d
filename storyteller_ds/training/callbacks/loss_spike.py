"""How far a loss stands out from those before it."""

import statistics
from collections.abc import Sequence

NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation (Hampel 1974)."""
LEAST_DEVIATION = 0.01
"""Smallest spread of losses that is assumed (nats per token), so that small changes are not spikes."""


def deviations(recent: Sequence[float], loss: float) -> float:
    """The distance of `loss` above the median of `recent`, in robust standard deviations; negative below it.

    Unlike mean and standard deviation, median and median absolute deviation are not moved by a few earlier spikes.

    Args:
        recent: finite losses (nats per token), at least one.
        loss: finite (nats per token).
    """
    median = statistics.median(recent)
    spread = NORMAL * statistics.median(abs(one - median) for one in recent)
    return (loss - median) / max(spread, LEAST_DEVIATION)


def is_spike(recent: Sequence[float], loss: float, window: int, threshold: float) -> bool:
    """Whether a finite loss is over `threshold` deviations above the latest `window` ones; False if there are fewer."""
    return len(recent) >= window and deviations(recent[-window:], loss) > threshold
