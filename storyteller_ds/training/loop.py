"""The training loop."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.batches import Batches, ValidationBatches
from storyteller_ds.engines.base import Engine, PendingStep
from storyteller_ds.engines.step import finished, reading_is_free
from storyteller_ds.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_TRAINING_STOPPED, TrainingStopped, UserError
from storyteller_ds.optim.schedule import learning_rate
from storyteller_ds.training.callbacks.anomalies import AGAIN
from storyteller_ds.training.callbacks.callback import Callback, Record
from storyteller_ds.training.interruption import Interruption
from storyteller_ds.training.train_record import StepTime, TrainRecords, mean_parts
from storyteller_ds.training.validation import validate

MOST_BEGUN = 16
"""Steps that a GPU may lag behind: a signal, or the end of train.max_minutes, may have to wait that long."""


def train(
    run: RunConfig,
    engine: Engine,
    batches: Batches,
    validation: ValidationBatches,
    state: TrainState,
    callbacks: Sequence[Callback],
    clock: Callable[[], float] = time.monotonic,
    interruption: Interruption | None = None,
    product_rate: float | None = None,
    earlier: Iterable[Record] = (),
) -> TrainState:
    """Train until max_steps, max_minutes or an early stop; called by every rank.

    Args:
        run: its config.
        engine: model and optimizer, as they are at `state`.
        batches: training batches of this rank.
        validation: validation batches of this rank.
        state: progress of the run so far.
        callbacks: get every event, in this order.
        clock: seconds.
        interruption: signals that end the run early.
        product_rate, earlier: see TrainRecords.

    Raises:
        InterruptedAfterSave: a signal asked for it.
        TrainingStopped: loss or gradient was not finite too often, or the validation loss is not finite.
    """
    exit_code, began, last = EXIT_TRAINING_STOPPED, clock() - state.elapsed_s, False
    records = TrainRecords(run, engine.world.size, product_rate, earlier)
    try:
        for callback in callbacks:
            callback.on_start(state)
        while state.step < run.train.max_steps and not last:
            _busy(callbacks, "training", last)
            begun = _begin_steps(run, engine, batches, state, callbacks, clock)
            state, recovered = _finish_steps(run, engine, state, begun, callbacks, clock, records)
            if recovered:
                continue
            state = _with_time(run, engine, state, clock() - began)
            last = why_over(run, state) is not None
            if last or _due(state.step, run.train.eval_every_steps):
                state, record, last = _evaluate(run, engine, validation, state, last, callbacks)
                for callback in callbacks:
                    callback.on_eval(record)
            for callback in callbacks:
                if (what := callback.busy_with(state, last)) is not None:
                    _busy(callbacks, what, last)
                callback.on_step_end(state, last)
            # Validation, samples and saving take time too, and the next learning rate depends on it.
            state = _with_time(run, engine, state, clock() - began)
            if interruption is not None and not last and interruption.agreed(engine.world, engine.device):
                _busy(callbacks, f"saving step {state.step}", last)
                for callback in callbacks:
                    callback.on_interrupt(state)
                exit_code = EXIT_INTERRUPTED
                raise interruption.after_save(state.step)
        exit_code = EXIT_DONE
    finally:
        with contextlib.ExitStack() as ends:  # all of them, even if one raises
            for callback in reversed(callbacks):
                ends.callback(callback.on_end, exit_code)
    return state


class _Begun(NamedTuple):
    """Steps whose results are not known yet."""

    steps: list[PendingStep]
    lr: float
    """Learning rate of the last one."""
    since: float
    """When the first one began."""
    waited: float
    """Time spent waiting for their batches [s]."""


def _begin_steps(
    run: RunConfig,
    engine: Engine,
    batches: Batches,
    state: TrainState,
    callbacks: Sequence[Callback],
    clock: Callable[[], float],
) -> _Begun:
    """Begin one step; on a GPU, all steps until something is due after one, so that it never waits for the host."""
    steps: list[PendingStep] = []
    since, waited = clock(), 0.0
    while True:
        lr, asked = learning_rate(run, state.step, state.elapsed_s), clock()
        micro_batches = batches.step(state.samples)
        waited += clock() - asked
        steps.append(engine.begin_step(micro_batches, lr))
        state = _after_step(run, state, skipped=False)
        is_due = (
            reading_is_free(engine.device)
            or len(steps) == MOST_BEGUN
            or state.step >= run.train.max_steps
            or _due(state.step, run.train.log_every_steps)
            or _due(state.step, run.train.eval_every_steps)
            or any(callback.acts_after(state) for callback in callbacks)
        )
        if is_due:
            return _Begun(steps, lr, since, waited)


def _finish_steps(
    run: RunConfig,
    engine: Engine,
    state: TrainState,
    begun: _Begun,
    callbacks: Sequence[Callback],
    clock: Callable[[], float],
    records: TrainRecords,
) -> tuple[TrainState, bool]:
    """Process the results of the steps, one after the other.

    Returns:
        The state after them, and whether a callback has rolled the run back, which also undoes the steps after that
        one.
    """
    results = finished(begun.steps)
    for result in results:
        state = _after_step(run, state, result.skipped)
        for callback in callbacks:
            state = _given_back(callback.on_result(state, result), callback, "on_result")
        if _due(state.step, run.train.log_every_steps):
            took = StepTime((clock() - begun.since) / len(results), begun.waited / len(results), mean_parts(results))
            record = records.record(state, result, engine.loss_scale, begun.lr, took)
            for callback in callbacks:
                callback.on_train(record)
        before = state
        for callback in callbacks:
            state = _given_back(callback.recover(state), callback, "recover")
        if state is not before:
            return state, True
    return state, False


def _given_back(state: object, callback: Callback, event: str) -> TrainState:
    """What a callback has returned, after checking that it is a state.

    Raises:
        UserError: it is not; a `return` is easily forgotten.
    """
    if not isinstance(state, TrainState):
        name = type(callback).__name__
        raise UserError(f"{name}.{event} returned {state!r:.40}; it has to return the state to go on with")
    return state


def _after_step(run: RunConfig, state: TrainState, skipped: bool) -> TrainState:
    samples = run.train.global_batch_size
    return state.after_step(samples, samples * run.data.sequence_length, skipped)


def _evaluate(
    run: RunConfig,
    engine: Engine,
    validation: ValidationBatches,
    state: TrainState,
    last: bool,
    callbacks: Sequence[Callback],
) -> tuple[TrainState, Record, bool]:
    """Validate on the text that every validation of this run uses; at the end of the run, on the whole text, too.

    Only scores on the same text can be compared, from step to step or to find the best; so those on the whole text have
    names of their own.

    Returns:
        The state with the scores, the record, and whether this is the last step, possibly because patience ran out.
    """
    _busy(callbacks, "validating", last)
    scores = _validated(engine, validation, state, run.train.eval_batches)
    state = state.after_eval(scores["val_loss"], int(scores["val_tokens"]))
    last = last or why_over(run, state) is not None
    if last:
        whole = scores
        if scores["val_tokens"] != validation.targets:
            _busy(callbacks, "validating on the whole text", last)
            whole = _validated(engine, validation, state, None)
        scores |= {f"final_{name}": whole[name] for name in ("val_loss", "val_ppl", "val_bpb")}
    return state, {"step": state.step, "tokens": state.tokens, **scores, "undone_steps": state.undone_steps}, last


def _busy(callbacks: Sequence[Callback], what: str, last: bool) -> None:
    for callback in callbacks:
        callback.on_busy(what, last)


def _validated(engine: Engine, validation: ValidationBatches, state: TrainState, limit: int | None) -> dict[str, float]:
    scores = validate(engine, validation, limit)
    if not math.isfinite(scores["val_loss"]):
        raise TrainingStopped(
            f"the validation loss of step {state.step} is {scores['val_loss']}; lower optimizer.lr or raise "
            f"schedule.warmup_steps, and {AGAIN}"
        )
    return scores


def why_over(run: RunConfig, state: TrainState) -> str | None:
    """Why a run does not continue from here, and what would let it; None if it does."""
    limits = run.train
    if state.step >= limits.max_steps:
        return f"trained for {state.step} steps; raise train.max_steps to go on"
    if 0 < limits.early_stop_patience <= state.evals_since_best:
        return f"stopped early after {state.step} steps; raise train.early_stop_patience to go on"
    if limits.max_minutes is not None and state.elapsed_s >= 60 * limits.max_minutes:
        warm_up = run.schedule.warmup_steps
        in_warm_up = f" (the warm-up was not over, schedule.warmup_steps={warm_up})" * (state.step < warm_up)
        return (
            f"stopped by train.max_minutes={limits.max_minutes:g} at step {state.step} of {limits.max_steps}; "
            f"raise it to go on{in_warm_up}"
        )
    return None


def _with_time(run: RunConfig, engine: Engine, state: TrainState, seconds: float) -> TrainState:
    if run.train.max_minutes is None:
        return state
    # Clocks differ between ranks, but all must use the same learning rates and stop at the same step: rank 0 decides.
    # In whole microseconds, since MPS has no fp64.
    microseconds = torch.tensor(round(1e6 * seconds) if engine.world.is_main else 0, device=engine.device)
    return dataclasses.replace(state, elapsed_s=int(engine.world.all_reduce_sum(microseconds)) / 1e6)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
