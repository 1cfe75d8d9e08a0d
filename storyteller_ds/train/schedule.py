"""Learning-rate schedules: pure functions of the step."""

import math

from storyteller_ds.config.run import RunConfig


def learning_rate(run: RunConfig, step: int) -> float:
    """Learning rate of optimizer step number `step`, counted from 0.

    Linear warm-up to optimizer.lr, then (cosine) half a cosine to min_lr_ratio of it at the last step,
    as in SGDR (Loshchilov and Hutter 2017, eq. 5) without restarts, or (constant) no change.
    """
    schedule, peak = run.schedule, run.optimizer.lr
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return peak
    # The last step, max_steps - 1, gets the lowest rate.
    span = max(1, run.train.max_steps - 1 - schedule.warmup_steps)
    progress = min(1.0, (step - schedule.warmup_steps) / span)
    floor = schedule.min_lr_ratio
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
