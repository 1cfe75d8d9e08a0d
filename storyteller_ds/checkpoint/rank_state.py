"""One rank's part of a checkpoint: taken from the engine while training waits, then written in the background."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.manifest import hash_file
from storyteller_ds.checkpoint.rng import rng_state
from storyteller_ds.durable import flush_to_disk, write_atomically
from storyteller_ds.engines.base import Engine


class RankState(NamedTuple):
    """One rank's part of the training state, in host memory."""

    parts: dict[str, dict[str, Tensor]]
    """For each of names.PARTS, its tensors by name."""
    total_bytes: int
    """Total size of the parts of all ranks, without the RNG state (bytes)."""


def take_rank_state(engine: Engine, copy: bool) -> RankState:
    """This rank's part of the state; each tensor goes to the rank that holds it, or else to the least loaded one.

    Called by every rank.

    The engine yields one whole tensor at a time, already on the host, so the device holds at most one extra copy of the
    largest tensor.

    Args:
        engine: the engine to save.
        copy: copy the tensors; otherwise they may be the engine's own, and it must not train until they are written.
    """
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
    load = [0] * engine.world.size

    def owner(size: int, holder: int | None) -> int:
        rank = load.index(min(load)) if holder is None else holder
        load[rank] += size
        return rank

    for kind, name, tensor in engine.named_state(owner):
        part, key = ("weights", name) if kind == "weight" else ("optimizer", f"{kind}/{name}")
        parts[part][key] = tensor.clone(memory_format=torch.contiguous_format) if copy else tensor.contiguous()
    parts["rng"] = rng_state(engine.device)
    return RankState(parts, sum(load))


def receipt_name(rank: int, world_size: int) -> str:
    """Name of the file that a rank writes when its part is on disk; it is removed before the manifest is made."""
    return f"receipt-{rank:05d}-of-{world_size:05d}.json"


def write_rank_state(folder: Path, state: RankState, rank: int, world_size: int) -> None:
    """Write a rank's part, wait until it is on disk, then leave a receipt with sizes and sha256.

    Raises:
        OSError, SafetensorError: the files cannot be written.
    """
    written: dict[str, Any] = {}
    for part, tensors in state.parts.items():
        path = folder / names.shard_name(part, rank, world_size)
        save_file(tensors, path)
        _as_readable_as_its_folder(path)
        flush_to_disk(path)
        written[path.name] = hash_file(path).model_dump()
    write_atomically(folder / receipt_name(rank, world_size), json.dumps(written))


def read_receipt(folder: Path, rank: int, world_size: int) -> dict[str, Any] | None:
    """Sizes and sha256 of a rank's files by name; None if they are not on disk yet."""
    path = folder / receipt_name(rank, world_size)
    if not path.exists():
        return None
    files: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return files


def _as_readable_as_its_folder(path: Path) -> None:
    """Give a file the mode that follows from the umask: safetensors makes files that only their owner can read."""
    # Taken from the folder: reading the umask means setting it, for the other threads, too.
    with contextlib.suppress(OSError):  # a file system without modes
        path.chmod(path.parent.stat().st_mode & 0o666)
