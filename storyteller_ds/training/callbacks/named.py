"""A user's own callbacks, including those that a run config names: train.callbacks=["my_module:MyCallback"]."""

import pkgutil
import sys
from collections.abc import Sequence

from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.errors import ConfigError
from storyteller_ds.training.callbacks.callback import Callback


def named_callbacks(names: Sequence[str]) -> list[Callback]:
    """One object of each class, made without arguments. Modules in the working directory are found, too.

    Args:
        names: each is MODULE:CLASS.

    Raises:
        ConfigError: one cannot be imported or made, or is not a Callback.
    """
    return [_made(name) for name in names]


def _made(name: str) -> Callback:
    if "" not in sys.path:  # as in python itself; the storyteller command has its own folder there
        sys.path.append("")
    try:
        made = pkgutil.resolve_name(name)()
    except Exception as error:  # the user's module may raise anything when it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"train.callbacks: '{name}' cannot be used as module:Class: {reason}") from error
    if not isinstance(made, Callback):
        raise ConfigError(f"train.callbacks: '{name}' is not a storyteller_ds.Callback")
    return made


def checked(named: Sequence[Callback], given: Sequence[Callback]) -> Sequence[Callback]:
    """Callbacks of the run config and of the caller, after checking for what would be silently ignored.

    Raises:
        ConfigError: one is not a Callback, or has a method on_... that no event calls.
    """
    if not isinstance(given, Sequence):
        raise ConfigError(f"callbacks is of type {type(given).__name__}; give a list: callbacks=[...]")
    events = [name for name in vars(Callback) if name.startswith("on_")]
    callbacks = [*named, *given]
    for callback in callbacks:
        if isinstance(callback, type) and issubclass(callback, Callback):
            raise ConfigError(f"callbacks: {callback.__name__} is a class; give an object, {callback.__name__}()")
        if not isinstance(callback, Callback):
            kind = type(callback).__name__
            raise ConfigError(f"callbacks: an object of type {kind} is not a storyteller_ds.Callback")
        for name in dir(callback):
            if name.startswith("on_") and name not in events:
                raise ConfigError(
                    f"callbacks: no event calls {type(callback).__name__}.{name}{did_you_mean(name, events)}"
                )
    return callbacks
