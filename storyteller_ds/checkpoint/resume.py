"""Check whether a run may continue from a checkpoint, and restore it to where it was."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.read import Checkpoint
from storyteller_ds.checkpoint.rng import seed_rng, set_rng_state
from storyteller_ds.checkpoint.tensor_files import TensorEntry, TensorFiles
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.load import flatten
from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines.base import Engine, LossScale
from storyteller_ds.errors import CheckpointError
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import empty_decoder
from storyteller_ds.optim.optimizer import muon_stacks, state_kinds
from storyteller_ds.validation_errors import first_problem

_MODEL_FIELDS = ("model.", "moe.num_experts", "moe.top_k", "moe.every_n_layers", "moe.noisy_gating")
# Must not change when a run continues: the function that the model computes, and what its ids and targets mean.
_FIXED_FIELDS = (
    *_MODEL_FIELDS,
    "tokenizer.vocab_size",
    # Decides which moments there are.
    "optimizer.kind",
    # The saved position counts sequences of this length and packing, in the order given by this seed.
    "data.sequence_length",
    "data.packing",
    "seed",
)
# These affect training, not the meaning of the weights.
_FREE_FIELDS = tuple(
    f"model.{name}" for name in ("size", "dropout", "init_std", "context_length", "activation_checkpointing")
)
# Settings of text and tokenizer that do not change the tokens.
_SAME_TOKENS = ("data.sequence_length", "data.packing", "data.document_mask", "data.cache_dir", "data.streaming")


def check_same_run(checkpoint: Checkpoint, run: RunConfig, dataset_fingerprint: str, resume: str = "auto") -> None:
    """Refuse to continue with another model, vocabulary or corpus, or from tensors that are not the model's.

    Args:
        checkpoint: the checkpoint to continue from.
        run: the run config.
        dataset_fingerprint: fingerprint of its corpus.
        resume: the --resume option as typed, or its default; the message says what to type instead.

    Raises:
        CheckpointError: names every field that differs, with both values.
    """
    before, now = settings_then(checkpoint), flatten(run.model_dump(mode="json"))
    fields = _changed(before, now)
    others = [field for field in fields if _is_fixed(field) and not decides_model(field)]
    changed = [*model_changes(checkpoint, run), *(_difference(field, before, now) for field in others)]
    if checkpoint.manifest.dataset_fingerprint != dataset_fingerprint:
        causes = [field for field in fields if field.startswith(("data.", "tokenizer.")) and field not in _SAME_TOKENS]
        reasons = [_difference(field, before, now) for field in causes if not _is_fixed(field)]
        if not causes:
            reasons = [_changed_in_place(now)]
        if reasons:  # else the cause is a fixed field, which is listed already
            changed.append(f"the corpus or its tokenizer is another ({'; '.join(reasons)})")
    if changed:
        how = "with another --output_dir or --resume never"
        if resume != "auto":
            how = f"with --resume never in place of --resume {resume}"
        raise CheckpointError(
            f"cannot continue {checkpoint.folder}: {'; '.join(changed)}; put the old values back, or start over {how}"
        )
    check_tensors(checkpoint, run)


def model_changes(checkpoint: Checkpoint, run: RunConfig) -> list[str]:
    """How the model of a run config differs from the checkpoint's: `field was OLD, now NEW`."""
    before, now = settings_then(checkpoint), flatten(run.model_dump(mode="json"))
    fields = [field for field in _changed(before, now) if decides_model(field)]
    if _is_dense(before) and _is_dense(now):
        fields = [field for field in fields if not field.startswith("moe.")]
    changed = [_difference(field, before, now) for field in fields]
    if run.model.position == "learned":
        rows = before.get("model.context_length") or before.get("data.sequence_length")
        if rows != run.context_length:
            changed.append(f"the table of learned positions had {rows} rows, now {run.context_length}")
    return changed


def decides_model(field: str) -> bool:
    """Whether a field of the run config decides which function the weights compute."""
    return field.startswith(_MODEL_FIELDS) and field not in _FREE_FIELDS


def _changed_in_place(now: Mapping[str, Any]) -> str:
    """The reason to give if the corpus has changed but none of its settings have."""
    others = [f"{field}={now[field]}" for field in ("data.validation", "tokenizer.path") if now[field] is not None]
    or_that = f", or that of {' or '.join(others)}" if others else ""
    return f"data.source is {now['data.source']} as before, its text has changed{or_that}"


def changed_settings(checkpoint: Checkpoint, run: RunConfig) -> list[str]:
    """Allowed differences from the run that wrote the checkpoint: `field was OLD, now NEW`."""
    before, now = settings_then(checkpoint), flatten(run.model_dump(mode="json"))
    return [_difference(field, before, now) for field in _changed(before, now) if not _is_fixed(field)]


def check_tensors(checkpoint: Checkpoint, run: RunConfig) -> None:
    """Check that the tensors match the model in name, shape and dtype, without loading any.

    Raises:
        CheckpointError: a tensor does not match; names it.
    """
    decoder = empty_decoder(run)
    stacks = muon_stacks(decoder, run)
    expected: dict[str, dict[str, TensorEntry]] = {"weights": {}, "optimizer": {}}
    for name, parameter, *_ in placed_parameters(decoder):
        for kind in state_kinds(parameter, stacks):
            part, key = ("weights", name) if kind == "weight" else ("optimizer", f"{kind}/{name}")
            expected[part][key] = TensorEntry("F32", tuple(parameter.shape))
    for part, entries in expected.items():
        checkpoint.open_tensors(part).check(entries)


def saved_state(checkpoint: Checkpoint) -> TrainState:
    """The progress of the run when it was saved.

    Raises:
        CheckpointError: its trainer.json does not contain it.
    """
    return _progress(checkpoint).state


def restore(engine: Engine, checkpoint: Checkpoint, seed: int) -> TrainState:
    """Restore weights, moments, RNG state and progress; called by every rank.

    With a different number of ranks, everything is kept except the RNG state of the ranks, which is seeded again from
    the seed and the step.

    Raises:
        CheckpointError: a file cannot be used on some rank; nothing has been changed.
    """
    files: list[_Files] = []
    engine.world.together(lambda: files.append(_open(checkpoint, engine.world.rank, engine.world.size)))
    opened = files[0]
    engine.load_named_state(
        lambda kind, name: opened.weights[name] if kind == "weight" else opened.optimizer[f"{kind}/{name}"],
        opened.progress.state.step,
        opened.progress.state.updates,
        opened.progress.loss_scale,
    )
    if opened.streams is None:
        seed_rng(seed, checkpoint.step, engine.world.rank)
    else:
        set_rng_state(engine.device, opened.streams)
    return opened.progress.state


class _Progress(BaseModel):
    """The contents of trainer.json."""

    state: TrainState
    loss_scale: LossScale | None = None


@dataclasses.dataclass(frozen=True)
class _Files:
    """What a rank needs from a checkpoint."""

    weights: TensorFiles
    optimizer: TensorFiles
    progress: _Progress
    streams: Mapping[str, torch.Tensor] | None
    """RNG state; None: there is none for this rank, because a different number of ranks wrote the checkpoint."""


def _progress(checkpoint: Checkpoint) -> _Progress:
    try:
        return _Progress.model_validate(checkpoint.read_json(names.TRAINER))
    except ValidationError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.folder}: {names.TRAINER} does not say where the run was ({first_problem(error)}); "
            "was it written by another version? use another step"
        ) from None


def _open(checkpoint: Checkpoint, rank: int, world_size: int) -> _Files:
    progress = _progress(checkpoint)
    streams = None
    if checkpoint.world_size == world_size:
        streams = dict(TensorFiles([checkpoint.folder / names.shard_name("rng", rank, world_size)]))
        now = torch.get_rng_state()
        if "cpu" not in streams or (streams["cpu"].shape, streams["cpu"].dtype) != (now.shape, now.dtype):
            raise CheckpointError(
                f"checkpoint {checkpoint.folder}: rank {rank}'s random streams are not those of torch"
            )
    return _Files(checkpoint.open_tensors("weights"), checkpoint.open_tensors("optimizer"), progress, streams)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    # A field that did not exist when the checkpoint was written is not compared, except fixed ones: see settings_then.
    return [field for field in now if field in before and before[field] != now[field]]


def settings_then(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that wrote the checkpoint; a fixed field that did not exist then gets its current default."""
    defaults = flatten(RunConfig().model_dump(mode="json"))
    return {field: value for field, value in defaults.items() if _is_fixed(field)} | checkpoint.settings()


def _difference(field: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"{field} was {before[field]}, now {now[field]}"


def _is_dense(settings: Mapping[str, Any]) -> bool:
    experts, every, layers = (settings.get(f) for f in ("moe.num_experts", "moe.every_n_layers", "model.num_layers"))
    return experts == 0 or (isinstance(every, int) and isinstance(layers, int) and every > layers)


def _is_fixed(field: str) -> bool:
    return field.startswith(_FIXED_FIELDS) and field not in _FREE_FIELDS
