"""What a run does about non-finite numbers and loss spikes: count, log, go back to a checkpoint, stop."""

import dataclasses
import math
from collections.abc import Callable

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines.base import StepResult
from storyteller_ds.errors import TrainingStopped
from storyteller_ds.training.callbacks.callback import Callback
from storyteller_ds.training.callbacks.loss_spike import is_spike

AGAIN = "run again; that continues from the last checkpoint, if there is one"


class Anomalies(Callback):
    """The policy of train.max_bad_steps, train.max_rollbacks and train.loss_spike_*.

    It depends only on the state and the result of a step, which are the same on every rank; so all ranks decide the
    same without communication, and a resumed run decides as the original one would have.

    Args:
        run: the run config.
        log: gets a line for each bad step, spike and rollback.
        roll_back: restores the engine from the newest checkpoint, on every rank, and returns the state of that time;
            None if there is no checkpoint.
    """

    def __init__(self, run: RunConfig, log: Callable[[str], None], roll_back: Callable[[], TrainState | None]) -> None:
        self.config, self.log, self._roll_back = run.train, log, roll_back
        self._too_bad: str | None = None
        """Why the run goes back after this step."""

    def on_result(self, state: TrainState, result: StepResult) -> TrainState:
        """Count a bad step or a loss spike; returns the state with its counts and recent losses."""
        self._too_bad = None
        if result.non_finite is not None:
            return self._bad_step(state, result.non_finite)
        if not result.skipped:
            state = dataclasses.replace(state, bad_steps_in_a_row=0)
        policy, window = self.config.loss_spike_policy, self.config.loss_spike_window
        if policy == "off" or not math.isfinite(result.loss):
            return state
        recent = state.recent_losses
        is_one = is_spike(recent, result.loss, window, self.config.loss_spike_threshold)
        if is_one:
            what = f"the loss of step {state.step} jumped to {result.loss:.4g}"
            if policy == "roll_back":
                self._too_bad = what
            else:
                self.log(f"{what}, far above the {window} before; training goes on (train.loss_spike_policy)")
        return dataclasses.replace(
            state, recent_losses=(*recent, result.loss)[-window:], loss_spikes=state.loss_spikes + is_one
        )

    def recover(self, state: TrainState) -> TrainState:
        """Go back to the newest checkpoint, if this step was too bad; training continues with samples not yet seen.

        Raises:
            TrainingStopped: it has gone back too often already, or there is no checkpoint.
        """
        why = self._too_bad
        if why is None:
            return state
        advice = "lower optimizer.lr or raise schedule.warmup_steps"
        if state.rollbacks >= self.config.max_rollbacks:
            times = f"after {state.rollbacks} rollback(s) " if state.rollbacks else ""
            raise TrainingStopped(f"{why}; {times}training stops: {advice}, and {AGAIN}")
        checkpoint = self._roll_back()
        if checkpoint is None:
            raise TrainingStopped(
                f"{why}, and there is no checkpoint to go back to: {advice}, and set checkpoint.every_steps"
            )
        after = state.after_rollback(checkpoint)
        self.log(
            f"{why}; back to step {after.step}, continuing after the samples seen since "
            f"(rollback {after.rollbacks} of at most {self.config.max_rollbacks})"
        )
        return after

    def _bad_step(self, state: TrainState, what: str) -> TrainState:
        row, most = state.bad_steps_in_a_row + 1, self.config.max_bad_steps
        line = f"the {what} of step {state.step} is not finite"
        if row >= most:
            self._too_bad = f"{line}, {row} in a row" if row > 1 else line
        else:
            self.log(f"{line}; the step is skipped ({row} in a row, train.max_bad_steps={most})")
        return dataclasses.replace(state, bad_steps=state.bad_steps + 1, bad_steps_in_a_row=row)
