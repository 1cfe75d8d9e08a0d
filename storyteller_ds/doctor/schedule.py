"""Learning rate and length of the run: settings that contradict each other or have no effect."""

from collections.abc import Iterator

from storyteller_ds.config.size import tuned_rate
from storyteller_ds.doctor.finding import Check, Finding, note, warning
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.model.counts import flops_per_token

_FAR_ABOVE, _FAR_BELOW = 10, 30
"""Factors from the tuned rate; other recipes that work are up to 2 times above it and 6 times below."""

_DECAYED = 0.05
"""Fraction of a weight removed in a step: after fourteen steps half of the weight is left."""


def only_warm_up(subject: Subject) -> Iterator[Finding]:
    """The learning rate is still rising when the run ends."""
    warm_up, steps = subject.run.schedule.warmup_steps, subject.run.train.max_steps
    if warm_up >= steps:
        yield warning(
            f"the whole run is warm-up (schedule.warmup_steps={warm_up}, train.max_steps={steps}), its learning rate "
            "only rises",
            f"schedule.warmup_steps={max(1, steps // 10)} would be a tenth",
        )
    elif warm_up > steps / 2:
        yield note(
            f"{warm_up / steps:.0%} of the run is warm-up (schedule.warmup_steps={warm_up}, train.max_steps={steps})",
            f"schedule.warmup_steps={max(1, steps // 10)} would be a tenth",
        )


def longer_than_a_week(subject: Subject) -> Iterator[Finding]:
    """A model for a GPU trained on a CPU, or one for a cluster trained on a GPU."""
    run, rate = subject.run, subject.machine.product_rate(subject.device)
    if rate is None or run.train.max_minutes is not None:
        return
    tokens = run.train.max_steps * run.train.global_batch_size * run.data.sequence_length
    days = flops_per_token(run) * tokens / rate / subject.plan.world_size / 86400
    if days > 7:
        yield warning(
            f"{tokens:,} tokens take {days:,.0f} days at least on this {subject.device.type}, by its rate of products",
            "storyteller plan says how long elsewhere; a smaller model (model.size), or lower train.max_steps",
        )


def no_decay(subject: Subject) -> Iterator[Finding]:
    """A schedule that should decay but does not."""
    schedule, steps = subject.run.schedule, subject.run.train.max_steps
    if schedule.kind == "constant" or schedule.warmup_steps >= steps:
        return
    if schedule.min_lr_ratio == 1:
        yield warning(
            f"schedule.kind={schedule.kind} ends at schedule.min_lr_ratio=1 of the peak, so that the learning rate "
            "never falls",
            "lower schedule.min_lr_ratio (0.1), or set schedule.kind=constant",
        )
    elif (falling := schedule.decay_fraction * (steps - schedule.warmup_steps)) < 1:
        yield warning(
            f"schedule.decay_fraction={schedule.decay_fraction:g} of {steps - schedule.warmup_steps} steps is "
            f"{falling:.2g} of a step, so that the learning rate never falls",
            "raise schedule.decay_fraction",
        )


def rate_far_off(subject: Subject) -> Iterator[Finding]:
    """A learning rate that is nowhere near the one tuned for a model of this width and depth."""
    rate, kind, model = subject.run.optimizer.lr, subject.run.optimizer.kind, subject.run.model
    tuned = tuned_rate(model.hidden_size, model.num_layers, kind)
    if rate > _FAR_ABOVE * tuned:
        how, what = f"{rate / tuned:,.0f} times", "it will probably diverge"
    elif rate < tuned / _FAR_BELOW:
        how, what = f"a {tuned / rate:,.0f}th of", "it will hardly learn"
    else:
        return
    yield warning(
        f"optimizer.lr={rate:g} is {how} what {kind} was tuned to at this size (model.hidden_size={model.hidden_size}, "
        f"model.num_layers={model.num_layers}); {what}",
        f"set optimizer.lr={tuned:.2g}",
    )


def tied_rates(subject: Subject) -> Iterator[Finding]:
    """Learning rates for an output projection that is tied to the embedding."""
    optimizer = subject.run.optimizer
    if not subject.run.model.tie_embeddings:
        return
    if optimizer.output_lr_ratio != 1:
        yield warning(
            f"optimizer.output_lr_ratio={optimizer.output_lr_ratio:g} has no effect, since the output projection is "
            "the embedding (model.tie_embeddings=true)",
            "leave it out, or set model.tie_embeddings=false",
        )
    if optimizer.embedding_lr_ratio > 1:
        yield warning(
            f"optimizer.embedding_lr_ratio={optimizer.embedding_lr_ratio:g} is the rate of the output projection, too, "
            "which wants a lower one (model.tie_embeddings=true)",
            "set model.tie_embeddings=false, or optimizer.embedding_lr_ratio=1",
        )


def no_clipping(subject: Subject) -> Iterator[Finding]:
    """Nothing bounds the size of a step."""
    if subject.run.optimizer.grad_clip_norm == 0:
        yield note(
            "optimizer.grad_clip_norm=0: one bad batch can throw the model back", "set optimizer.grad_clip_norm=1"
        )


def decayed_to_nothing(subject: Subject) -> Iterator[Finding]:
    """A step shrinks every weight by learning rate times weight decay; above 1, the weight changes its sign."""
    optimizer = subject.run.optimizer
    part = optimizer.lr * optimizer.weight_decay
    if part > _DECAYED:
        steps = "to nothing or beyond" if part >= 1 else f"by {part:.0%}"
        yield warning(
            f"each step shrinks the weights {steps} (optimizer.lr={optimizer.lr:g} times optimizer.weight_decay="
            f"{optimizer.weight_decay:g}), so that nothing is kept of what was learnt",
            "set optimizer.weight_decay=0.1",
        )


CHECKS: tuple[Check, ...] = (
    only_warm_up,
    longer_than_a_week,
    no_decay,
    rate_far_off,
    tied_rates,
    no_clipping,
    decayed_to_nothing,
)
