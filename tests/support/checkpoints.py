"""Checkpoints of engines that do not train."""

from pathlib import Path

from storyteller_ds.checkpoint.write import Contents, Save
from storyteller_ds.engines.base import Engine


def write_checkpoint(engine: Engine, checkpoints: Path, step: int, contents: Contents) -> Path:
    """Write `checkpoints/step_N` and wait for it; called by every rank. Returns the folder."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    return Save(engine, checkpoints, step, contents).finish()
