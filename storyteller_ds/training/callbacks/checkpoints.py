"""Saves the run while it trains."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from storyteller_ds.checkpoint.read import newest_valid
from storyteller_ds.checkpoint.resume import restore
from storyteller_ds.checkpoint.retention import clear_leftovers, delete_superseded
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.checkpoint.write import Contents, Save
from storyteller_ds.config.training import CheckpointConfig
from storyteller_ds.engines.base import Engine
from storyteller_ds.errors import CheckpointError
from storyteller_ds.records.run_folder import written_record
from storyteller_ds.training.callbacks.callback import Callback, Record

SECONDS_FOR_THE_OTHERS = 60
"""How long rank 0 waits for the files of ranks that it can no longer talk to, after training has failed."""


class Checkpoints(Callback):
    """Saves a checkpoint at regular intervals, and always at the end.

    At most one is being written; the next waits for it. All methods are called by every rank.

    Args:
        engine: what to save.
        checkpoints: the folder of the step folders.
        config: when, how, and which are kept.
        contents: what is saved besides the tensors, whatever the state.
        log: gets a line for each checkpoint; may be called from another thread.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoints: Path,
        config: CheckpointConfig,
        contents: Contents,
        log: Callable[[str], None],
    ) -> None:
        self.engine, self.checkpoints, self.config = engine, checkpoints, config
        self.contents, self.log = contents, log
        self._saving: Save | None = None
        self._saved_step: int | None = None
        self._evaluated: Record = {}

    def on_start(self, state: TrainState) -> None:
        """Make the folder, and remove what a killed run left unfinished in it."""
        self.engine.world.on_main(self._prepare_folder)

    def on_eval(self, record: Record) -> None:
        """Remember the score, for the checkpoint of the same step."""
        self._evaluated = record

    def busy_with(self, state: TrainState, last: bool) -> str | None:
        """A checkpoint, if one is due."""
        return f"saving step {state.step}" if self._due(state, last) else None

    def acts_after(self, state: TrainState) -> bool:
        """Whether a checkpoint is due."""
        return self._due(state, False)

    def on_step_end(self, state: TrainState, last: bool) -> None:
        """Save if a checkpoint is due; log the result of the previous save as soon as it is known.

        Raises:
            CheckpointError: one could not be written, and checkpoint.on_error is stop or this is the last.
        """
        due = self._due(state, last)
        if self._saving is not None and (due or self._saving.done()):
            # A failed earlier save is no reason to stop when the last one is about to begin.
            self._settle(may_fail=last or self.config.on_error == "continue")
        if not due:
            return
        may_fail = not last and self.config.on_error == "continue"
        try:
            self._saving = self._begin(state, wait=last or not self.config.asynchronous)
        except CheckpointError as error:
            self._report(error, may_fail)
        if last or not self.config.asynchronous:
            self._settle(may_fail)

    def on_interrupt(self, state: TrainState) -> None:
        """Save this step unless it has just been saved, and wait for it.

        Raises:
            CheckpointError: it could not be written, even if checkpoint.on_error is continue.
        """
        self._settle(may_fail=True)
        if self._saved_step != state.step:
            self._saving = self._begin(state, wait=True)
            self._settle(may_fail=False)

    def on_end(self, exit_code: int) -> None:
        """If training failed while a checkpoint was being written, finish it without contacting the other ranks."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            try:
                self.log(f"saved {saving.finish_alone(SECONDS_FOR_THE_OTHERS)}")
            except CheckpointError as error:
                self.log(f"warning: {error}")

    def roll_back(self, seed: int) -> TrainState | None:
        """Restore the run from its newest valid checkpoint, including one that is being written.

        Args:
            seed: seed of the run.

        Returns:
            The state of the run now; None if there is no valid checkpoint, in which case nothing has changed.
        """
        self._settle(may_fail=True)
        self._saved_step = None
        checkpoint = self.engine.world.on_main(lambda: newest_valid(self.checkpoints, self.log))
        return None if checkpoint is None else restore(self.engine, checkpoint, seed)

    def _due(self, state: TrainState, last: bool) -> bool:
        due = bool(self.config.every_steps and state.step % self.config.every_steps == 0)
        # Weights that may have caused the non-finite numbers are not worth going back to.
        return last or (due and not state.bad_steps_in_a_row)

    def _begin(self, state: TrainState, wait: bool) -> Save:
        scale = self.engine.loss_scale
        scores = self._evaluated if self._evaluated.get("step") == state.step else {}
        contents = dataclasses.replace(
            self.contents,
            trainer={"state": dataclasses.asdict(state), "loss_scale": scale and scale._asdict()},
            val_bpb=scores.get("val_bpb"),
            val_tokens=scores.get("val_tokens"),
        )
        return Save(
            self.engine,
            self.checkpoints,
            state.step,
            contents,
            not wait,
            lambda: self._delete_superseded(state.step),
        )

    def _settle(self, may_fail: bool) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            self.log(f"saved {saving.finish()}")
            self._saved_step = saving.step
        except CheckpointError as error:
            self._report(error, may_fail)

    def _report(self, error: CheckpointError, may_fail: bool) -> None:
        if not may_fail:
            raise error
        self.log(f"warning: {error}; training goes on")

    def _delete_superseded(self, step: int) -> None:
        """Runs in the background."""
        try:
            delete_superseded(self.checkpoints, self.config, step)
        except OSError as error:
            self.log(f"warning: an old checkpoint could not be deleted: {error}")

    def _prepare_folder(self) -> None:
        with written_record(self.checkpoints):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            clear_leftovers(self.checkpoints)
        except OSError as error:
            self.log(f"warning: what an earlier run left unfinished could not be removed: {error}")
