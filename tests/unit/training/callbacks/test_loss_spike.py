"""The spike detector compared with sorting by hand, and what it must and must not report."""

import math
import random

import pytest

from storyteller_ds.training.callbacks.loss_spike import LEAST_DEVIATION, deviations, is_spike


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@pytest.mark.parametrize("seed", range(20))
def test_as_by_hand(seed):
    draw = random.Random(seed)
    for _ in range(50):
        recent = [draw.gauss(3, 10 ** draw.uniform(-4, 1)) for _ in range(draw.randint(1, 40))]
        loss = draw.uniform(-5, 20)
        center = middle(recent)
        # 1 / (the third quartile of a normal distribution)
        spread = middle([abs(value - center) for value in recent]) / 0.6744897501960817
        assert deviations(recent, loss) == pytest.approx((loss - center) / max(spread, LEAST_DEVIATION), rel=1e-4)


def test_the_deviation_of_a_normal_distribution_is_its_own():
    draw = random.Random(0)
    recent = [draw.gauss(2, 0.5) for _ in range(20_001)]
    assert deviations(recent, 2 + 4 * 0.5) == pytest.approx(4, rel=0.03)


def test_no_spike_before_the_window_is_full():
    assert not is_spike([1.0] * 7, 100.0, 8, 5.0)
    assert is_spike([1.0] * 8, 100.0, 8, 5.0)


def test_only_the_latest_window_counts():
    assert is_spike([50.0] * 8 + [1.0] * 8, 40.0, 8, 5.0)
    assert not is_spike([1.0] * 8 + [50.0] * 8, 40.0, 8, 5.0)


def test_earlier_spikes_do_not_hide_a_later_one():
    noise = random.Random(1)
    recent = [2 + noise.gauss(0, 0.05) for _ in range(32)]
    recent[3], recent[17], recent[30] = 20.0, 30.0, 25.0
    assert is_spike(recent, 20.0, 32, 10.0)
    # Negative control: mean and standard deviation would miss it.
    mean = sum(recent) / 32
    assert (20.0 - mean) / math.sqrt(sum((value - mean) ** 2 for value in recent) / 32) < 10


def test_a_leap_down_and_a_trifle_are_no_spikes():
    assert not is_spike([5.0] * 8, 0.1, 8, 3.0)
    assert not is_spike([5.0] * 8, 5.0 + 2 * LEAST_DEVIATION, 8, 3.0)


def test_a_falling_noisy_loss_has_no_spikes_and_a_tenfold_one_is_found():
    draw = random.Random(2)
    losses = [2 + 6 * math.exp(-step / 150) + draw.gauss(0, 0.1) for step in range(2000)]
    assert not any(is_spike(losses[:step], losses[step], 128, 10.0) for step in range(2000))
    assert all(is_spike(losses[:step], 10 * losses[step], 128, 10.0) for step in range(400, 2000, 100))
