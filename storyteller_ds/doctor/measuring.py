"""Validation, samples, profiles and batches of a run: too many, or none where some are expected."""

from collections.abc import Iterator

from storyteller_ds.doctor.finding import Check, Finding, note, warning
from storyteller_ds.doctor.subject import Subject

_FORWARD = 1 / 3
"""The forward pass as a fraction of a step: the backward pass is the other two thirds."""
_MOST_OF_THE_TIME = 0.5
_SMALL_STEP = 8192
"""Tokens per rank that fit into one micro-batch on any device (docs/performance.md)."""


def no_patience(subject: Subject) -> Iterator[Finding]:
    """Validation is too rare for train.early_stop_patience to have an effect."""
    train = subject.run.train
    patience, every, steps = train.early_stop_patience, train.eval_every_steps, train.max_steps
    if patience and not 0 < every * (patience + 1) <= steps:
        yield warning(
            f"train.early_stop_patience={patience} has no effect, since it counts validations "
            f"(train.eval_every_steps={every}, train.max_steps={steps})",
            "validate more often",
        )


def validates_too_often(subject: Subject) -> Iterator[Finding]:
    """Most of the time goes into validation."""
    train, text = subject.run.train, subject.text
    batches = train.eval_batches
    per_batch = train.global_batch_size * subject.run.data.sequence_length
    if text is not None and text.validation_tokens is not None:
        whole = max(1, round(text.validation_tokens / per_batch))
        batches = whole if batches is None else min(batches, whole)
    if batches is None or not 0 < train.eval_every_steps <= train.max_steps:
        return
    validating = batches * _FORWARD
    share = validating / (validating + train.eval_every_steps)
    if share > _MOST_OF_THE_TIME:
        enough = max(train.eval_every_steps, round(9 * validating))
        yield warning(
            f"{share:.0%} of the time would be validation: {batches} batches every {train.eval_every_steps} step(s)",
            f"set train.eval_every_steps={enough}, or train.eval_batches={max(1, round(batches * (1 - share) / 5))}",
        )


def validates_at_the_end_only(subject: Subject) -> Iterator[Finding]:
    """A validation interval that the run does not reach; 0 would say the same on purpose."""
    every, steps = subject.run.train.eval_every_steps, subject.run.train.max_steps
    if every > steps:
        yield note(
            f"train.eval_every_steps={every} is beyond the end (train.max_steps={steps}): only the end is validated",
            f"train.eval_every_steps={max(1, steps // 5)} has five",
        )


def samples_too_often(subject: Subject) -> Iterator[Finding]:
    """Stories are generated token by token, which takes as long as many steps."""
    train = subject.run.train
    if 0 < train.sample_every_steps < min(10, train.max_steps) and train.sample_prompts:
        yield note(
            f"train.sample_every_steps={train.sample_every_steps}: {len(train.sample_prompts)} stories are told every "
            "few steps, token by token",
            "train.sample_every_steps=100, or train.sample_tokens=50",
        )


def profile_after_the_end(subject: Subject) -> Iterator[Finding]:
    """Steps to profile that the run does not reach."""
    train = subject.run.train
    if train.profiled is not None and train.profiled[1] > train.max_steps:
        yield warning(
            f"train.profile_steps={train.profile_steps} is beyond the end (train.max_steps={train.max_steps})",
            f"train.profile_steps={max(1, train.max_steps - 3)}-{train.max_steps}",
        )


def needless_accumulation(subject: Subject) -> Iterator[Finding]:
    """Several small micro-batches where a single one would be faster."""
    plan, length = subject.plan, subject.run.data.sequence_length
    tokens = plan.micro_batch_size * plan.accumulation_steps * length
    if plan.accumulation_steps > 1 and tokens <= _SMALL_STEP:
        yield note(
            f"{plan.accumulation_steps} micro-batches of {plan.micro_batch_size} x {length} tokens make a step of "
            f"{tokens:,} tokens a rank, which one micro-batch holds in less time",
            f"set train.micro_batch_size={plan.micro_batch_size * plan.accumulation_steps}, and leave out "
            "train.gradient_accumulation_steps",
        )


def watchdog_after_the_collective(subject: Subject) -> Iterator[Finding]:
    """Hanging ranks would be ended by the collective's timeout, without printing their threads' stacks."""
    hang, collective = subject.run.train.hang_timeout_minutes, subject.run.parallel.timeout_minutes
    if subject.plan.world_size > 1 and hang >= collective:
        yield warning(
            f"train.hang_timeout_minutes={hang:g} is not below parallel.timeout_minutes={collective:g}: a rank that "
            "hangs ends without its stacks",
            f"parallel.timeout_minutes={1.5 * hang:g}",
        )


CHECKS: tuple[Check, ...] = (
    no_patience,
    validates_too_often,
    validates_at_the_end_only,
    samples_too_often,
    profile_after_the_end,
    needless_accumulation,
    watchdog_after_the_collective,
)
