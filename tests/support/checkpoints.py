"""Checkpoints of engines, written without training."""

from pathlib import Path

from storyteller_ds.checkpoint.write import Contents, Save
from storyteller_ds.engines.base import Engine


def write_checkpoint(engine: Engine, checkpoints: Path, step: int, contents: Contents) -> Path:
    """Write `checkpoints/step_N`, wait for it, and return the folder; called by every rank."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    return Save(engine, checkpoints, step, contents).finish()
