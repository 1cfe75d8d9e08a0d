"""Checkpoints: when they are written, which are kept, and whether they fit on the disk."""

import math
from collections.abc import Iterator

from rich.filesize import decimal

from storyteller_ds.doctor.finding import Check, Finding, error, note, warning
from storyteller_ds.doctor.subject import Subject

_LONG_RUN = 1000
"""A run of this many steps without a checkpoint before its end is probably not intended."""


def no_best(subject: Subject) -> Iterator[Finding]:
    """No checkpoint before the last will have a score for checkpoint.keep_best."""
    keep, train = subject.run.checkpoint, subject.run.train
    validated, steps = train.eval_every_steps, train.max_steps
    if keep.keep_last is None or keep.keep_best == 0 or not 0 < keep.every_steps < steps:
        return
    if validated and math.lcm(keep.every_steps, validated) < steps:
        return
    yield warning(
        f"checkpoint.keep_best={keep.keep_best} has no effect, since no checkpoint before the last has a "
        f"score (checkpoint.every_steps={keep.every_steps}, train.eval_every_steps={validated})",
        "validate at steps that are saved",
    )


def saves_at_the_end_only(subject: Subject) -> Iterator[Finding]:
    """A power cut loses the whole run."""
    every, steps = subject.run.checkpoint.every_steps, subject.run.train.max_steps
    if 0 < every <= steps or (every == 0 and steps < _LONG_RUN):
        return
    what = f"checkpoint.every_steps={every}" + (" is beyond the end" if every else "")
    say = warning if steps >= _LONG_RUN else note
    yield say(
        f"{what} (train.max_steps={steps}): only the last step is saved, and a power cut loses the run",
        f"checkpoint.every_steps={max(1, steps // 10)}",
    )


def keeps_nothing_more(subject: Subject) -> Iterator[Finding]:
    """checkpoint.keep_every_steps has no effect, or not the intended one."""
    keep = subject.run.checkpoint
    if keep.keep_every_steps and keep.keep_last is None:
        yield warning(
            f"checkpoint.keep_every_steps={keep.keep_every_steps} has no effect: without checkpoint.keep_last all are "
            "kept",
            "checkpoint.keep_last=2, or leave it out",
        )
    elif keep.keep_every_steps and keep.every_steps and keep.keep_every_steps % keep.every_steps:
        both = math.lcm(keep.keep_every_steps, keep.every_steps)
        yield warning(
            f"checkpoint.keep_every_steps={keep.keep_every_steps} is not a multiple of checkpoint.every_steps="
            f"{keep.every_steps}: only every {both} steps one is both saved and kept",
            f"checkpoint.keep_every_steps={-(-keep.keep_every_steps // keep.every_steps) * keep.every_steps}",
        )


def disk_too_small(subject: Subject) -> Iterator[Finding]:
    """The kept checkpoints and the one being written do not fit."""
    free, size = subject.machine.free_bytes(subject.output_dir), subject.checkpoint_bytes
    count = _kept(subject)
    what = f"{decimal(free)} are free for {subject.output_dir}, and "
    if free < size:
        yield error(f"{what}one checkpoint is {decimal(size)}", "free some, or choose another --output_dir")
    elif free < count * size:
        yield warning(
            f"{what}this run writes {count} checkpoints of {decimal(size)}, {decimal(count * size)}",
            "checkpoint.keep_last=2, or choose another --output_dir",
        )


def _kept(subject: Subject) -> int:
    """Maximum number of checkpoints on the disk at once."""
    keep, steps = subject.run.checkpoint, subject.run.train.max_steps
    saved = 1 if keep.every_steps == 0 else -(-steps // keep.every_steps)
    if keep.keep_last is None:
        return saved
    milestones = steps // keep.keep_every_steps if keep.keep_every_steps else 0
    return min(saved, keep.keep_last + keep.keep_best + milestones + 1)


CHECKS: tuple[Check, ...] = (no_best, saves_at_the_end_only, keeps_nothing_more, disk_too_small)
