"""Finding a checkpoint, and putting a run back to where it was."""

from collections.abc import Callable
from pathlib import Path

from storyteller_ds.checkpoint import format as layout
from storyteller_ds.checkpoint.format import Checkpoint, open_checkpoint, step_folders
from storyteller_ds.checkpoint.rng import seed_rng, set_rng_state
from storyteller_ds.config.load import flatten
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import CheckpointError
from storyteller_ds.parallel.engine import Engine, LossScale
from storyteller_ds.train.run_folder import CHECKPOINTS
from storyteller_ds.train.state import TrainState

# What must not change under a run: the model's function, and what its ids and targets mean.
_FIXED_FIELDS = (
    "model.",
    "moe.num_experts",
    "moe.top_k",
    "moe.every_n_layers",
    "moe.noisy_gating",
    "tokenizer.vocab_size",
    # Which moments there are.
    "optimizer.kind",
    # Where in the order of samples a run is, counts sequences of this length in the order of this seed.
    "data.sequence_length",
    "seed",
)
# These change the training, not what the weights mean.
_FREE_FIELDS = ("model.dropout", "model.init_std", "model.context_length", "model.activation_checkpointing")


def find_checkpoint(path: Path, say: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that `path` names: a step folder, or a run folder and then its newest valid step.

    Raises:
        CheckpointError: there is none, or the step folder is damaged.
    """
    if (path / layout.MANIFEST).exists():
        checkpoint = open_checkpoint(path)
        checkpoint.verify()
        return checkpoint
    found = newest_valid(path / CHECKPOINTS, say) or newest_valid(path, say)
    if found is None:
        reason = "it has no valid checkpoint" if path.exists() else "there is no such folder"
        raise CheckpointError(f"no checkpoint at {path}: {reason}; give a run folder or a step folder")
    return found


def newest_valid(checkpoints: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest step whose files all agree with its manifest; damaged ones are passed over, and said so."""
    for folder in step_folders(checkpoints):
        try:
            checkpoint = open_checkpoint(folder)
            if folder.name != layout.step_folder_name(checkpoint.step):
                raise CheckpointError(f"{folder} holds step {checkpoint.step}; give it its own name back")
            checkpoint.verify()
        except CheckpointError as error:
            say(f"passing over a checkpoint: {error}")
            continue
        return checkpoint
    return None


def check_same_run(checkpoint: Checkpoint, run: RunConfig, dataset_fingerprint: str) -> None:
    """Refuse to continue with another model, vocabulary or corpus.

    Raises:
        CheckpointError: names every field that differs, with both values.
    """
    before = flatten(checkpoint.read_json(layout.CONFIG)["run"])
    now = flatten(run.model_dump(mode="json"))
    changed = [
        f"{field} was {before.get(field)}, now {now[field]}"
        for field in now
        if field.startswith(_FIXED_FIELDS) and field not in _FREE_FIELDS and before.get(field) != now[field]
    ]
    if run.model.position == "learned":
        rows = before.get("model.context_length") or before.get("data.sequence_length")
        if rows != run.context_length:
            changed.append(f"the table of learned positions had {rows} rows, now {run.context_length}")
    if checkpoint.manifest["dataset_fingerprint"] != dataset_fingerprint:
        changed.append(
            f"the corpus or its tokenizer is another (data.source was {before.get('data.source')}, "
            f"now {now['data.source']})"
        )
    if changed:
        raise CheckpointError(
            f"cannot continue {checkpoint.folder}: {'; '.join(changed)}; "
            "put the old values back, or use another --output_dir or --resume never"
        )


def restore(engine: Engine, checkpoint: Checkpoint, seed: int) -> TrainState:
    """Put weights, moments, random streams and progress back; called by every rank."""
    weights, optimizer = checkpoint.open_tensors("weights"), checkpoint.open_tensors("optimizer")
    trainer = checkpoint.read_json(layout.TRAINER)
    state = TrainState(**trainer["state"])
    scale = trainer.get("loss_scale")
    engine.load_named_state(
        lambda kind, name: weights[name] if kind == "weight" else optimizer[f"{kind}/{name}"],
        state.updates,
        scale and LossScale(**scale),
    )
    if checkpoint.world_size == engine.world.size:
        name = layout.shard_name("rng", engine.world.rank, engine.world.size)
        streams = layout.TensorFiles([checkpoint.folder / name])
        set_rng_state(engine.device, {key: streams[key] for key in streams})
    else:
        # There is no meaning in another number of streams; start new ones from seed and step.
        seed_rng(seed, checkpoint.step, engine.world.rank)
    return state
