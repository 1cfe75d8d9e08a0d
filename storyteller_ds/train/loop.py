"""The training loop."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batches import TrainBatches, ValidationBatches
from storyteller_ds.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_TRAINING_STOPPED, TrainingStopped
from storyteller_ds.parallel.engine import Engine, LossScale, StepResult
from storyteller_ds.train.anomalies import Anomalies
from storyteller_ds.train.hooks import Hook, Record
from storyteller_ds.train.interruption import Interruption
from storyteller_ds.train.schedule import learning_rate
from storyteller_ds.train.state import TrainState
from storyteller_ds.train.validation import validate

COUNTS = ("skipped_steps", "bad_steps", "loss_spikes", "rollbacks", "undone_steps")
"""What every train line says of the state: see TrainState."""


def train(
    run: RunConfig,
    engine: Engine,
    batches: TrainBatches,
    validation: ValidationBatches,
    state: TrainState,
    hooks: Sequence[Hook],
    anomalies: Anomalies,
    clock: Callable[[], float] = time.monotonic,
    interruption: Interruption | None = None,
) -> TrainState:
    """Train until max_steps, max_minutes or an early stop; called by every rank.

    Raises:
        InterruptedAfterSave: a signal has asked for it.
        TrainingStopped: loss or gradient were not finite too often, or the validation loss is not.
    """
    exit_code, began, last = EXIT_TRAINING_STOPPED, clock(), False
    try:
        for hook in hooks:
            hook.on_start(state)
        while state.step < run.train.max_steps and not last:
            started = clock()
            lr = learning_rate(run, state.step)
            result = engine.train_step(batches.step(state.samples), lr)
            samples = run.train.global_batch_size
            state = state.after_step(samples, samples * run.data.sequence_length, result.skipped)
            state, too_bad = anomalies.observe(state, result)
            if state.step % run.train.log_every_steps == 0:
                record = _train_record(run, state, result, engine.loss_scale, lr, clock() - started)
                for hook in hooks:
                    hook.on_train(record)
            if too_bad is not None:
                state = anomalies.go_back(state, too_bad)
                continue
            last = state.step == run.train.max_steps or _out_of_time(run, engine, clock() - began)
            if last or _due(state.step, run.train.eval_every_steps):
                state, record, stop = _evaluate(run, engine, validation, state, last)
                last = last or stop
                for hook in hooks:
                    hook.on_eval(record)
            for hook in hooks:
                hook.on_step_end(state, last)
            if interruption is not None and not last and interruption.agreed(engine.world, engine.device):
                for hook in hooks:
                    hook.on_interrupt(state)
                exit_code = EXIT_INTERRUPTED
                raise interruption.after_save(state.step)
        exit_code = EXIT_DONE
    finally:
        for hook in hooks:
            hook.on_end(exit_code)
    return state


def _evaluate(
    run: RunConfig, engine: Engine, validation: ValidationBatches, state: TrainState, last: bool
) -> tuple[TrainState, Record, bool]:
    """Validate; the last time on the whole text. Also says whether patience has run out."""
    scores = validate(engine, validation, None if last else run.train.eval_batches)
    if not math.isfinite(scores["val_loss"]):
        raise TrainingStopped(
            f"the validation loss of step {state.step} is {scores['val_loss']}; lower optimizer.lr or raise "
            "schedule.warmup_steps, and run again to continue from the last checkpoint"
        )
    after = state.after_eval(scores["val_loss"])
    stop = out_of_patience(run, after)
    if stop and not last and run.train.eval_batches is not None:
        scores = validate(engine, validation, None)
    return after, {"step": state.step, "tokens": state.tokens, **scores, "undone_steps": state.undone_steps}, stop


def out_of_patience(run: RunConfig, state: TrainState) -> bool:
    """Whether the validation loss has not improved for train.early_stop_patience validations."""
    return 0 < run.train.early_stop_patience <= state.evals_since_best


def _train_record(
    run: RunConfig, state: TrainState, result: StepResult, scale: LossScale | None, lr: float, seconds: float
) -> Record:
    record = {
        "step": state.step,
        "tokens": state.tokens,
        "train_loss": result.loss,
        "lr": lr,
        "grad_norm": None if result.skipped else result.grad_norm,
        **(dataclasses.asdict(result.router) if result.router else {}),
        "tokens_per_s": run.train.global_batch_size * run.data.sequence_length / seconds,
        "step_time_s": seconds,
        **{name: getattr(state, name) for name in COUNTS},
    }
    if scale is not None:
        record["loss_scale"] = scale.scale
    if torch.cuda.is_available():
        record["memory_peak_bytes"] = torch.cuda.max_memory_allocated()
    # JSON has no word for what is not finite.
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in record.items()}


def _out_of_time(run: RunConfig, engine: Engine, seconds: float) -> bool:
    if run.train.max_minutes is None:
        return False
    # Clocks differ between ranks, and all must stop at the same step: rank 0's decides.
    over = engine.world.is_main and seconds >= 60 * run.train.max_minutes
    flag = torch.tensor(int(over), device=engine.device)
    return bool(engine.world.all_reduce_sum(flag))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
