"""Learning-rate schedules: pure functions of the step and, with train.max_minutes, of the time."""

import math

from storyteller_ds.config.run import RunConfig
from storyteller_ds.config.training import ScheduleConfig

ONE_CYCLE_START = 25
"""one_cycle divides the peak by this for its first step, as torch does."""


def learning_rate(run: RunConfig, step: int, elapsed_s: float = 0.0) -> float:
    """Learning rate of optimizer step number `step`, counted from 0.

    Warms up to optimizer.lr and then, over the last schedule.decay_fraction of what is left, decays to min_lr_ratio of
    it at the last step: along half a cosine, as in SGDR (Loshchilov and Hutter 2017, eq. 5) without restarts, or
    linearly.

    With train.max_minutes the decay follows max_steps or max_minutes, whichever is used up further. So the rate has
    decayed when the run ends, by steps or by time, and a limit that is not reached changes nothing. The warm-up follows
    steps only; if time overtakes it, the lower of the two rates applies.

    Args:
        run: the run config.
        step: optimizer steps done.
        elapsed_s: training time spent, the same on every rank (s).
    """
    schedule, peak, steps, minutes = run.schedule, run.optimizer.lr, run.train.max_steps, run.train.max_minutes
    warming = _warm_up(schedule, peak, step)
    place = step if minutes is None else max(step, elapsed_s / (60 * minutes) * steps)
    if schedule.kind == "constant" or place < schedule.warmup_steps:
        return warming
    # The last step, max_steps - 1, gets the lowest rate.
    span = max(1, steps - 1 - schedule.warmup_steps)
    used = min(1.0, (place - schedule.warmup_steps) / span)
    progress = max(0.0, (used - (1 - schedule.decay_fraction)) / schedule.decay_fraction)
    floor = schedule.min_lr_ratio
    # This order of operations reproduces the rates of earlier runs to the last bit.
    if schedule.kind == "linear":
        return min(warming, peak * (floor + (1 - floor) * (1 - progress)))
    return min(warming, peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))))


def _warm_up(schedule: ScheduleConfig, peak: float, step: int) -> float:
    """The rate during warm-up, then the peak."""
    if step >= schedule.warmup_steps:
        return peak
    if schedule.kind == "one_cycle":
        risen = 0.5 * (1 - math.cos(math.pi * step / schedule.warmup_steps))
        return peak * (1 + (ONE_CYCLE_START - 1) * risen) / ONE_CYCLE_START
    return peak * (step + 1) / schedule.warmup_steps
