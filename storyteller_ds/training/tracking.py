"""Which trackers get the records of a run besides metrics.jsonl, and which of their runs it continues."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from storyteller_ds.checkpoint.names import CHECKPOINTS
from storyteller_ds.checkpoint.retention import best_step
from storyteller_ds.config import LoadedConfig
from storyteller_ds.config.training import TrackingConfig
from storyteller_ds.errors import ConfigError
from storyteller_ds.records.run_folder import MLFLOW_RUN_ID, MLRUNS, TENSORBOARD, WANDB_RUN_ID, RunFolder
from storyteller_ds.training.callbacks.callback import Callback
from storyteller_ds.training.callbacks.mlflow_run import MlflowRun
from storyteller_ds.training.callbacks.tensorboard_events import TensorBoardEvents
from storyteller_ds.training.callbacks.wandb_run import WandbRun


def check_trackers(tracking: TrackingConfig) -> None:
    """Refuse a tracker that was requested but is not installed.

    Raises:
        ConfigError: says what to install.
    """
    for module, package in ("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny"):
        if getattr(tracking, module) and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"tracking.{module} needs the package {module}: pip install {package}, or set tracking.{module}=false"
            )


def trackers(
    loaded: LoadedConfig, folder: RunFolder, config: Mapping[str, Any], log: Callable[[str], None]
) -> tuple[list[Callback], dict[str, str | None]]:
    """The trackers of a run config.

    Args:
        loaded: the run config, and where its values come from.
        folder: folder of the run; the tracker runs recorded in it are read.
        config: recorded as the config of the tracker runs.
        log: logs a line.

    Returns:
        The callbacks, and the entries that config.json needs so that a resumed run continues the same tracker runs.
    """
    tracking = loaded.run.tracking
    # The environment overrides a default, but not an explicit choice.
    chosen = "tracking.project" in loaded.sources or not os.environ.get("WANDB_PROJECT")
    wandb_run = WandbRun(
        mode=tracking.wandb,
        project=tracking.project if chosen else None,
        run_name=tracking.run_name,
        output_dir=folder.path,
        config=config,
        run_id=folder.tracked_as(WANDB_RUN_ID),
        warn=log,
        best=partial(best_step, folder.path / CHECKPOINTS) if tracking.wandb_checkpoint else None,
    )
    made: list[Callback] = [wandb_run]
    ids = {WANDB_RUN_ID: wandb_run.run_id}
    if tracking.tensorboard:
        made.append(TensorBoardEvents(folder.path / TENSORBOARD, log))
    earlier = folder.tracked_as(MLFLOW_RUN_ID)
    if tracking.mlflow:
        mlflow_run = MlflowRun(folder.path / MLRUNS, tracking.project, tracking.run_name, config, earlier, log)
        made.append(mlflow_run)
        earlier = mlflow_run.run_id
    return made, ids if earlier is None else {**ids, MLFLOW_RUN_ID: earlier}
