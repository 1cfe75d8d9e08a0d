"""Train small mixture-of-experts story models, and tell stories with them.

    import storyteller_ds as st

    run = st.train("quickstart", {"train.max_steps": 200}, output_dir="runs/first")
    print(st.load("runs/first").generate("Once upon a time", seed=1))

Names are imported when they are first used, so that `storyteller --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from storyteller_ds.version import VERSION

if TYPE_CHECKING:
    from storyteller_ds.checkpoint.train_state import TrainState
    from storyteller_ds.config.load import LoadedConfig, load_config
    from storyteller_ds.config.run import RunConfig
    from storyteller_ds.engines.base import StepResult
    from storyteller_ds.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        InterruptedAfterSave,
        OutOfMemory,
        StorytellerError,
        TrainingStopped,
        UserError,
    )
    from storyteller_ds.generation.sampling import SamplingConfig
    from storyteller_ds.generation.story_model import StoryModel
    from storyteller_ds.interchange.load import load
    from storyteller_ds.records.trained_run import TrainedRun
    from storyteller_ds.training.callbacks.callback import Callback, Record
    from storyteller_ds.training.library import train
    from storyteller_ds.training.trainer import Trainer

__version__ = VERSION
__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InterruptedAfterSave",
    "LoadedConfig",
    "OutOfMemory",
    "Record",
    "RunConfig",
    "SamplingConfig",
    "StepResult",
    "StoryModel",
    "StorytellerError",
    "TrainState",
    "TrainedRun",
    "Trainer",
    "TrainingStopped",
    "UserError",
    "load",
    "load_config",
    "train",
]

_HOMES = {
    "checkpoint.train_state": ("TrainState",),
    "config.load": ("LoadedConfig", "load_config"),
    "config.run": ("RunConfig",),
    "engines.base": ("StepResult",),
    "errors": (
        *("CheckpointError", "ConfigError", "DataError", "InterruptedAfterSave", "OutOfMemory"),
        *("StorytellerError", "TrainingStopped", "UserError"),
    ),
    "generation.sampling": ("SamplingConfig",),
    "generation.story_model": ("StoryModel",),
    "interchange.load": ("load",),
    "training.callbacks.callback": ("Callback", "Record"),
    "training.library": ("train",),
    "records.trained_run": ("TrainedRun",),
    "training.trainer": ("Trainer",),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # a type checker should complain about a name that is not above

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
