"""Training that starts from the weights of another run (`--init_from`), with a new text, optimizer and schedule."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.quantized import Weights
from storyteller_ds.checkpoint.read import Checkpoint, find_checkpoint, is_of_another_tool, open_checkpoint
from storyteller_ds.checkpoint.resume import decides_model, model_changes, settings_then
from storyteller_ds.config.load import LoadedConfig, load_config, parse_run_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.engines.base import Engine
from storyteller_ds.errors import CheckpointError
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import empty_decoder
from storyteller_ds.user_paths import given_path


def load_initial_config(
    init_from: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    ds_config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ranks: int = 1,
    log: Callable[[str], None] = lambda _: None,
) -> LoadedConfig:
    """A run config whose model and tokenizer are those of a checkpoint; see load_config for the rest.

    Args:
        init_from: run folder (its newest valid step) or step folder; weights are enough.
        config: a preset or a file; what a preset says about model and tokenizer is ignored.
        overrides: see load_config.
        ds_config: likewise.
        ranks: likewise.
        log: gets a line about each step that is skipped.

    Raises:
        CheckpointError: there is no valid checkpoint.
        ConfigError: see load_config.
    """
    path = given_path(init_from, "init_from")
    if is_of_another_tool(path):
        raise CheckpointError(
            f"{path} is a model in another tool's format; read it first: storyteller import --from hf --model {path} "
            "--output_dir RUN"
        )
    checkpoint = find_checkpoint(path, log, names.WEIGHTS)
    model = _model_settings(checkpoint)
    loaded = load_config(config, overrides, ds_config=ds_config, ranks=ranks, model=(str(path), model))
    name = loaded.name if config is not None else f"{path.resolve().name}-tuned"
    return dataclasses.replace(loaded, name=name, init_from=checkpoint.folder)


def check_initial(folder: Path, run: RunConfig, tokenizer: Tokenizer) -> None:
    """Refuse to start from the weights of another model, or with a vocabulary other than theirs.

    Args:
        folder: step folder of the weights.
        run: the run config.
        tokenizer: tokenizer of its corpus.

    Raises:
        CheckpointError: names every field that differs.
    """
    checkpoint = open_checkpoint(folder)
    before = _model_settings(checkpoint)
    changed = [
        f"tokenizer.{field} was {before[f'tokenizer.{field}']}, now {value}"
        for field, value in (("kind", run.tokenizer.kind), ("vocab_size", run.tokenizer.vocab_size))
        if value != before[f"tokenizer.{field}"]
    ]
    changed += model_changes(checkpoint, run)
    if load_tokenizer(folder / names.TOKENIZER, "use another step").to_json() != tokenizer.to_json():
        changed.append("the tokenizer is another")
    if changed:
        raise CheckpointError(
            f"cannot begin with the weights of {folder}: {'; '.join(changed)}; leave these settings out, the model "
            "decides them"
        )
    shapes = {name: tuple(parameter.shape) for name, parameter, *_ in placed_parameters(empty_decoder(run))}
    checkpoint.open_weights().check(shapes)


def begin_with(engine: Engine, folder: Path) -> None:
    """Replace an engine's weights with those of a checkpoint and reset its optimizer; called by every rank.

    Raises:
        CheckpointError: the checkpoint cannot be read on some rank; nothing has been changed.
    """
    opened: list[Weights] = []
    engine.world.together(lambda: opened.append(open_checkpoint(folder).open_weights()))
    (weights,) = opened
    engine.load_named_state(
        lambda kind, name: weights[name] if kind == "weight" else torch.zeros(weights.shapes[name]),
        steps=0,
        updates=0,
        loss_scale=engine.loss_scale,
    )


def _model_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that decide the model and its tokens, and the sequence length that it was trained with."""
    config = str(checkpoint.folder / names.CONFIG)
    run = parse_run_config(checkpoint.read_json(names.CONFIG).get("run") or {}, config)
    return {
        **{field: value for field, value in settings_then(checkpoint).items() if decides_model(field)},
        "model.context_length": run.context_length,
        "data.sequence_length": run.data.sequence_length,
        "tokenizer.kind": run.tokenizer.kind,
        "tokenizer.vocab_size": run.tokenizer.vocab_size,
        "tokenizer.special_tokens": list(run.tokenizer.special_tokens),
        "tokenizer.path": str(checkpoint.folder / names.TOKENIZER),
    }
