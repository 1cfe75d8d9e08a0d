"""Writing a checkpoint: every rank its share, then one rename."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from storyteller_ds.checkpoint import format as layout
from storyteller_ds.checkpoint.rng import rng_state
from storyteller_ds.durable import flush_to_disk, write_flushed
from storyteller_ds.errors import CheckpointError
from storyteller_ds.parallel.engine import Engine

T = TypeVar("T")


@dataclass(frozen=True)
class Contents:
    """What goes into a checkpoint besides tensors."""

    trainer: Mapping[str, Any]
    config: Mapping[str, Any]
    tokenizer_json: str
    dataset_fingerprint: str
    topology: Mapping[str, Any]
    """world_size, ep_size, zero_stage and the like, of the run that writes."""


def write_checkpoint(engine: Engine, checkpoints: Path, step: int, contents: Contents) -> Path:
    """Write `checkpoints/step_N`; called by every rank. Returns the folder.

    Everything is written to `step_N.tmp` and flushed to disk; the manifest comes last, then the rename.

    Raises:
        CheckpointError: the disk refuses on any rank; raised on all. Earlier checkpoints are untouched.
    """
    world = engine.world
    final = checkpoints / layout.step_folder_name(step)
    work = final.with_name(f"{final.name}.tmp")

    def start() -> None:
        if work.exists():  # left by a run that was killed while it wrote
            shutil.rmtree(work)
        work.mkdir(parents=True)

    world.on_main(_disk_errors(start, final))
    shares = _my_share(engine)
    written = world.together(_disk_errors(lambda: _write_share(work, shares, world.rank, world.size), final))

    def finish() -> None:
        files = {name: entry for share in written for name, entry in share.items()}
        for name, text in (
            (layout.TRAINER, json.dumps(contents.trainer, indent=2)),
            (layout.CONFIG, json.dumps(contents.config, indent=2)),
            (layout.TOKENIZER, contents.tokenizer_json),
        ):
            write_flushed(work / name, text)
            files[name] = layout.hash_file(work / name)
        manifest = {
            "format": layout.FORMAT_VERSION,
            "step": step,
            "dataset_fingerprint": contents.dataset_fingerprint,
            "topology": contents.topology,
            "files": dict(sorted(files.items())),
        }
        manifest["seal"] = layout.seal_of(manifest)
        write_flushed(work / layout.MANIFEST, json.dumps(manifest, indent=2) + "\n")
        flush_to_disk(work)
        if final.exists():  # a damaged or older one of the same step
            shutil.rmtree(final)
        work.rename(final)
        flush_to_disk(checkpoints)

    world.on_main(_disk_errors(finish, final))
    return final


def _my_share(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """This rank's part of the state: each tensor goes to the rank that has least so far."""
    shares: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
    load = [0] * engine.world.size
    for kind, name, tensor in engine.named_state():
        owner = load.index(min(load))
        load[owner] += tensor.numel()
        if owner == engine.world.rank:
            part, key = ("weights", name) if kind == "weight" else ("optimizer", f"{kind}/{name}")
            shares[part][key] = tensor.contiguous()
    shares["rng"] = rng_state(engine.device)
    return shares


def _write_share(folder: Path, shares: dict[str, dict[str, Tensor]], rank: int, size: int) -> dict[str, Any]:
    written = {}
    for part, tensors in shares.items():
        path = folder / layout.shard_name(part, rank, size)
        save_file(tensors, path)
        flush_to_disk(path)
        written[path.name] = layout.hash_file(path)
    return written


def _disk_errors(action: Callable[[], T], final: Path) -> Callable[[], T]:
    """`action`, with the disk's refusal as a CheckpointError."""

    def guarded() -> T:
        try:
            return action()
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {final} could not be written: {error.strerror or error}; "
                "earlier checkpoints are untouched; make room and run again"
            ) from error

    return guarded
