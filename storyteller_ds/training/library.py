"""Training with one call."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from storyteller_ds.config.load import load_config
from storyteller_ds.data.given_stories import keep_stories
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import DataError
from storyteller_ds.records.trained_run import TrainedRun
from storyteller_ds.training.callbacks.callback import Callback
from storyteller_ds.training.initial import load_initial_config
from storyteller_ds.training.trainer import Trainer
from storyteller_ds.user_paths import LONGEST_NAME


def train(
    config: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    data: str | os.PathLike[str] | Iterable[str | Mapping[str, Any]] | None = None,
    ds_config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] = "auto",
    init_from: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainedRun:
    """Train a story model; repeating the call continues the run, or finds nothing to do.

    Args:
        config, overrides, ds_config: see load_config.
        data: what data.source may be (`builtin`, a text file, a folder, a Hugging Face name), or stories, one text
            each; a twentieth of them (data.validation_fraction) is held out, and the rest must fill a batch.
        output_dir, resume, callbacks: see Trainer.
        init_from: run folder or step folder; the run uses its model and tokenizer, and starts from its weights.

    Raises:
        ConfigError: the config cannot be used, in general or on this machine.
        UserError, TrainingStopped, InterruptedAfterSave, KeyboardInterrupt: see Trainer.fit.
    """
    ranks = World.from_environment().size
    if data is not None:
        _check_data(data)
    load = load_config if init_from is None else partial(load_initial_config, init_from)
    loaded = load(config, overrides, ds_config=ds_config, ranks=ranks)
    if data is not None:
        if isinstance(data, str | os.PathLike):
            source = os.fspath(data)
        else:
            source = str(keep_stories(list(data), loaded.run.data.cache_dir))
        loaded = load(config, _with_source(overrides, source), ds_config=ds_config, ranks=ranks)
    return Trainer(loaded, output_dir, callbacks, resume).fit()


def _check_data(data: object) -> None:
    """Raise DataError for data that would be mistaken for a path or for stories."""
    fix = "give a list of stories, or the path of a text file"
    if isinstance(data, str):
        if "\n" in data or not data.strip() or len(os.fsencode(Path(data).name)) > LONGEST_NAME:
            raise DataError(f"data is one text; {fix}")
    elif isinstance(data, Mapping) or not isinstance(data, os.PathLike | Iterable):
        raise DataError(f"data is of type {type(data).__name__}; {fix}")


def _with_source(overrides: Mapping[str, Any] | Sequence[str], source: str) -> Mapping[str, Any] | Sequence[str]:
    if isinstance(overrides, Mapping):
        return {**overrides, "data.source": source}
    return [*overrides, f"data.source={json.dumps(source)}"]
