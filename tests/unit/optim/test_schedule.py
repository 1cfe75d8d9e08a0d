"""Learning rates against their closed form."""

import math

import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.optim.schedule import learning_rate


def run(kind="cosine", warmup=4, steps=25, floor=0.1, lr=2e-3, minutes=None, decay=1.0) -> RunConfig:
    return RunConfig.model_validate(
        {
            "schedule": {"kind": kind, "warmup_steps": warmup, "min_lr_ratio": floor, "decay_fraction": decay},
            "optimizer": {"lr": lr},
            "train": {"max_steps": steps, "max_minutes": minutes},
        }
    )


@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_the_warm_up_is_a_straight_line_that_never_is_zero(kind):
    rates = [learning_rate(run(kind), step) for step in range(4)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1.5e-3, 2e-3], rel=1e-12)


def test_cosine_at_places_that_are_known_without_a_cosine():
    # Steps 4 to 24 are 20 apart: their quarters are whole steps, their sixths would not be.
    rate = {step: learning_rate(run(), step) / 2e-3 for step in range(30)}
    assert rate[4] == pytest.approx(1.0)
    assert rate[14] == pytest.approx(0.1 + 0.9 / 2)
    assert rate[9] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert rate[19] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2)
    assert rate[24] == pytest.approx(0.1)
    assert rate[29] == pytest.approx(0.1)  # it stays there after the end
    assert all(rate[i] > rate[i + 1] for i in range(4, 24))


def rates_of(scheduler: type[torch.optim.lr_scheduler.LRScheduler], steps: int, **settings: object) -> list[float]:
    """Return the learning rates of one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule, rates = scheduler(optimizer, **settings), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_one_cycle_is_torchs():
    ours = [learning_rate(run("one_cycle", warmup=29, steps=100, floor=4e-6), step) for step in range(100)]
    theirs = rates_of(torch.optim.lr_scheduler.OneCycleLR, 100, max_lr=2e-3, total_steps=100, pct_start=0.3)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_linear_is_torchs():
    ours = [learning_rate(run("linear", warmup=0, steps=31, floor=0.2), step) for step in range(31)]
    theirs = rates_of(torch.optim.lr_scheduler.LinearLR, 31, start_factor=1.0, end_factor=0.2, total_iters=30)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_short_decay_begins_late_and_ends_at_the_floor(kind):
    # 21 steps from 4 to 24; the last quarter begins at step 19.
    rates = [learning_rate(run(kind, decay=0.25), step) / 2e-3 for step in range(25)]
    assert rates[4:20] == [1.0] * 16
    assert rates[24] == pytest.approx(0.1)
    half_way = (rates[21] + rates[22]) / 2
    assert half_way == pytest.approx(0.55, abs=1e-3)
    assert all(rates[i] > rates[i + 1] for i in range(19, 24))


def test_constant_stays_at_the_peak():
    assert {learning_rate(run("constant"), step) for step in range(4, 100)} == {2e-3}


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 2), (1, 1), (1, 2), (50, 10), (9, 10), (10, 10)])
def test_short_runs_have_a_rate_at_every_step(warmup, steps):
    rates = [learning_rate(run(warmup=warmup, steps=steps), step) for step in range(steps)]
    assert all(0 < rate <= 2e-3 for rate in rates)
    if warmup == 0:
        assert rates[0] == 2e-3
    if 0 == warmup < steps - 1:
        assert rates[-1] == pytest.approx(2e-4)


def test_no_floor_ends_at_zero():
    assert learning_rate(run(floor=0.0), 24) == pytest.approx(0.0, abs=1e-18)


def test_where_time_is_ahead_the_cosine_goes_by_it():
    """Half of a one-minute limit counts as half of the 25 steps, however many of them are done."""
    timed = run(minutes=1.0)
    assert learning_rate(timed, 6, 30.0) / 2e-3 == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 8.5 / 20)))
    assert learning_rate(timed, 6, 60.0) == learning_rate(timed, 6, 99.0) == pytest.approx(2e-4)
    assert learning_rate(timed, 20, 30.0) == learning_rate(run(), 20)  # the steps are ahead
    assert learning_rate(run("constant", minutes=1.0), 6, 50.0) == 2e-3


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 30), (4, 30), (40, 30), (4, 10**6), (500, 1000)])
def test_of_a_run_that_time_ends_the_rate_rises_once_and_falls_to_the_floor(warmup, steps, floor):
    timed = run(warmup=warmup, steps=steps, floor=floor, minutes=1.0)
    rates = [learning_rate(timed, step, elapsed) for step, elapsed in enumerate(range(60))]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= rate <= 2e-3 for rate in rates)
    assert rates[-1] <= 2e-3 * (floor + 0.01)


@pytest.mark.parametrize("floor", [0.0, 0.1, 1 / 3, 0.7, 0.9999999])
@pytest.mark.parametrize("warmup", [0, 3, 7])
def test_time_that_is_not_ahead_changes_no_bit(warmup, floor):
    plain, timed = run(warmup=warmup, floor=floor), run(warmup=warmup, floor=floor, minutes=1.0)
    for step in range(25):
        assert learning_rate(timed, step, step * 59 / 25) == learning_rate(plain, step)
        assert learning_rate(plain, step, 1e9) == learning_rate(plain, step)
