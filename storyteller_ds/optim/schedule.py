"""Learning-rate schedules: pure functions of the step and, with train.max_minutes, of the time."""

import math

from storyteller_ds.config.run import RunConfig


def learning_rate(run: RunConfig, step: int, elapsed_s: float = 0.0) -> float:
    """Learning rate of optimizer step number `step`, counted from 0.

    Linear warm-up to optimizer.lr, then (cosine) half a cosine to min_lr_ratio of it at the last step,
    as in SGDR (Loshchilov and Hutter 2017, eq. 5) without restarts, or (constant) no change.

    With train.max_minutes the cosine follows max_steps or max_minutes, of which a larger part is used up. So the rate
    has fallen when the run ends, by steps or by time, and a limit that is not reached changes nothing. The warm-up
    follows steps only; where time overtakes it, the lower of the two rates counts.

    Args:
        run: the run config.
        step: optimizer steps done.
        elapsed_s: training time spent, the same on every rank (s).
    """
    schedule, peak, steps, minutes = run.schedule, run.optimizer.lr, run.train.max_steps, run.train.max_minutes
    warming = peak * (step + 1) / schedule.warmup_steps if step < schedule.warmup_steps else peak
    place = step if minutes is None else max(step, elapsed_s / (60 * minutes) * steps)
    if schedule.kind == "constant" or place < schedule.warmup_steps:
        return warming
    # The last step, max_steps - 1, gets the lowest rate.
    span = max(1, steps - 1 - schedule.warmup_steps)
    progress = min(1.0, (place - schedule.warmup_steps) / span)
    floor = schedule.min_lr_ratio
    return min(warming, peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))))
