"""Saves the run while it trains."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from storyteller_ds.checkpoint.write import Contents, write_checkpoint
from storyteller_ds.parallel.engine import Engine
from storyteller_ds.train.hooks import Hook
from storyteller_ds.train.state import TrainState


class CheckpointHook(Hook):
    """A checkpoint every so many steps, and always at the end.

    Args:
        engine: what to save.
        checkpoints: the folder of the step folders.
        every_steps: steps between two checkpoints; 0: only the end.
        contents: makes what is saved beside the tensors, for a state.
        say: told of each checkpoint.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoints: Path,
        every_steps: int,
        contents: Callable[[dict[str, object]], Contents],
        say: Callable[[str], None],
    ) -> None:
        self.engine, self.checkpoints, self.every_steps = engine, checkpoints, every_steps
        self.contents, self.say = contents, say

    def on_step_end(self, state: TrainState, last: bool) -> None:
        """Save if it is time."""
        if last or (self.every_steps and state.step % self.every_steps == 0):
            scale = self.engine.loss_scale
            contents = self.contents({"state": dataclasses.asdict(state), "loss_scale": scale and scale._asdict()})
            folder = write_checkpoint(self.engine, self.checkpoints, state.step, contents)
            self.say(f"saved {folder}")
