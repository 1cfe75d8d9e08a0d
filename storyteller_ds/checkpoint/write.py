"""Writing a checkpoint in the background while training continues: every rank writes its files, then one rename.

The ranks coordinate in two ways. A rank whose files are on disk writes a receipt into the unfinished folder, and the
writer thread of rank 0 waits for the receipts: only main threads communicate, so that collectives keep their order. A
rank that could not write its files may have no room for a message either, so the main threads exchange failures, at the
end of a step or when they wait for the save.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.manifest import hash_file
from storyteller_ds.checkpoint.rank_state import RankState, read_receipt, take_rank_state, write_rank_state
from storyteller_ds.checkpoint.retention import put_in_place
from storyteller_ds.config.run import RunConfig
from storyteller_ds.durable import flush_to_disk, write_flushed
from storyteller_ds.engines.base import Engine
from storyteller_ds.errors import CheckpointError, UserError
from storyteller_ds.untrusted import seal_of

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Contents:
    """What goes into a checkpoint besides tensors."""

    trainer: Mapping[str, Any]
    config: Mapping[str, Any]
    tokenizer_json: str
    dataset_fingerprint: str
    topology: Mapping[str, Any]
    """world_size, ep_size, zero_stage and so on, of the run that writes."""
    val_bpb: float | None = None
    """Validation score at exactly this step (bits per byte); None if there was no validation."""
    val_tokens: int | None = None
    """Number of tokens of the validation text that val_bpb covers."""

    @classmethod
    def of_model(cls, run: RunConfig, tokenizer_json: str) -> Self:
        """Contents for a model that was not trained here, so that no text is known."""
        config = {"run": run.model_dump(mode="json"), "deepspeed": None, "topology": {}}
        return cls({}, config, tokenizer_json, dataset_fingerprint="", topology={"world_size": 1})


class Save:
    """A checkpoint that is being written; created, polled and finished by the main thread of every rank.

    Everything is written to `step_N.tmp` and flushed to disk; the manifest comes last, then the rename.

    Args:
        engine: the engine to save, in its current state.
        checkpoints: the folder of the step folders; must exist, so that nothing is written to the mount point of a
            disk that is no longer mounted.
        step: optimizer steps done.
        contents: what is saved besides the tensors.
        copy: save copies of the tensors; false: training must wait until finish().
        after: called in the background on rank 0 when the checkpoint is in place.

    Raises:
        CheckpointError: there is no room, or the folder cannot be created; raised on all ranks.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoints: Path,
        step: int,
        contents: Contents,
        copy: bool = False,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.world, self.device = engine.world, engine.device
        self.checkpoints, self.step, self.contents, self.after = checkpoints, step, contents, after
        self.folder = checkpoints / names.step_folder_name(step)
        self.unfinished = self.folder.with_name(f"{self.folder.name}.tmp")
        self._give_up = threading.Event()
        state = take_rank_state(engine, copy)
        self.world.on_main(lambda: self._guarded(lambda: self._start(state.total_bytes)))
        threads = ThreadPoolExecutor(1, "checkpoint", _let_training_go_first)
        self._state = threads.submit(self._guarded, lambda: self._write(state))
        self._place: Future[None] | None = None
        if self.world.is_main:
            self._place = threads.submit(self._guarded, self._commit)
        threads.shutdown(wait=False)

    def done(self) -> bool:
        """Whether all ranks have written, or one has failed, so that finish() need not wait. Called by every rank."""
        mine = [job for job in (self._state, self._place) if job is not None]
        failed = any(job.done() and job.exception() is not None for job in mine)
        running = not all(job.done() for job in mine)
        ranks = self.world.all_reduce_sum(torch.tensor([int(failed), int(running)], device=self.device))
        return bool(ranks[0] > 0 or ranks[1] == 0)

    def finish(self) -> Path:
        """Wait until the checkpoint is in place; called by every rank. Returns the folder.

        Raises:
            CheckpointError: it could not be written; raised on all ranks. Earlier checkpoints are untouched.
        """
        with self._cleared_on_failure():
            self.world.together(self._state.result)
            self.world.on_main(lambda: self._place.result() if self._place else None)
        return self.folder

    def finish_alone(self, seconds: float) -> Path:
        """Like finish(), but without contacting the other ranks, which may be gone: wait `seconds` for their files.

        Raises:
            CheckpointError: it could not be written.
        """
        with self._cleared_on_failure():
            self._state.result()
            if self._place is not None:
                if not wait([self._place], seconds).done:
                    self._give_up.set()
                self._place.result()
        return self.folder

    def _start(self, total_bytes: int) -> None:
        if self.unfinished.exists():  # left by a run that was killed while writing
            shutil.rmtree(self.unfinished)
        free = shutil.disk_usage(self.checkpoints).free
        if free < total_bytes:
            raise OSError(
                errno.ENOSPC,
                f"no space left, {total_bytes / 2**20:,.2f} MiB are needed and {free / 2**20:,.2f} MiB are free",
            )
        self.unfinished.mkdir()

    def _write(self, state: RankState) -> None:
        write_rank_state(self.unfinished, state, self.world.rank, self.world.size)

    def _commit(self) -> None:
        """On rank 0 only: when the files of all ranks are on disk, make them a checkpoint."""
        self._state.result()
        files = self._wait_for_receipts()
        _complete(self.unfinished, self.step, self.contents, files)
        put_in_place(self.unfinished, self.folder)
        self.after()

    def _wait_for_receipts(self) -> dict[str, Any]:
        files: dict[str, Any] = {}
        missing = set(range(self.world.size))
        while True:
            for rank in sorted(missing):
                if (written := read_receipt(self.unfinished, rank, self.world.size)) is not None:
                    files |= written
                    missing.discard(rank)
            if not missing:
                return files
            if self._give_up.wait(_SECONDS_BETWEEN_LOOKS):
                raise CheckpointError(f"checkpoint {self.folder} was not finished: rank {min(missing)} did not write")

    @contextlib.contextmanager
    def _cleared_on_failure(self) -> Iterator[None]:
        """On failure, stop waiting and remove what was written."""
        try:
            yield
        except CheckpointError:
            self._give_up.set()
            if self._place is not None:
                self._place.exception()
                shutil.rmtree(self.unfinished, ignore_errors=True)
            raise

    def _guarded(self, action: Callable[[], T]) -> T:
        """Run `action`, turning a disk error into a CheckpointError."""
        try:
            return action()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint {self.folder} could not be written: {getattr(error, 'strerror', None) or error}; "
                "earlier checkpoints are untouched; the disk must be there, writable, with room (also by quota and "
                "ulimit -f), and the same for all ranks; fix that and run again"
            ) from error


def _let_training_go_first() -> None:
    """Lower the priority of this thread below that of the training threads; Linux only has per-thread priorities."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def fingerprint_of(run: Mapping[str, Any]) -> str:
    """sha256 of a run config, equal for configs with equal values."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def check_new_run(output_dir: Path) -> None:
    """Refuse a run folder that already exists, before the work for it begins.

    Raises:
        UserError: it exists.
    """
    if os.path.lexists(output_dir):
        raise UserError(f"{output_dir} exists already; remove it, or choose another --output_dir")


def write_weights_run(output_dir: Path, step: int, contents: Contents, weights: Mapping[str, Tensor]) -> Path:
    """Write a new run folder with one checkpoint (see write_weights), or nothing at all. Returns the step folder.

    Raises:
        UserError: it could not be written.
    """
    try:
        (output_dir / names.CHECKPOINTS).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{output_dir} cannot be made: {error.strerror}; choose another --output_dir") from None
    try:
        return write_weights(output_dir / names.CHECKPOINTS, step, contents, weights)
    except BaseException:
        shutil.rmtree(output_dir, ignore_errors=True)
        raise


def write_weights(checkpoints: Path, step: int, contents: Contents, weights: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint of weights alone, which is enough to generate; returns its folder.

    Args:
        checkpoints: the folder of the step folders.
        step: its number.
        contents: what is saved besides the tensors.
        weights: canonical name -> fp32 tensor, or the tensors that quantized.py makes of them.

    Raises:
        CheckpointError: it could not be written.
    """
    folder = checkpoints / names.step_folder_name(step)
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shard = names.shard_name(names.PARTS[0], 0, 1)
    try:
        unfinished.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, unfinished / shard)
        flush_to_disk(unfinished / shard)
        _complete(unfinished, step, contents, {shard: hash_file(unfinished / shard).model_dump()})
        put_in_place(unfinished, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"{folder} could not be written: {getattr(error, 'strerror', None) or error}") from error
    return folder


def _complete(unfinished: Path, step: int, contents: Contents, files: dict[str, Any]) -> None:
    """Write everything besides the tensors, the manifest last.

    Args:
        unfinished: folder with the tensors.
        step: its number.
        contents: what is written.
        files: manifest entries of the tensor files.
    """
    for name, text in (
        (names.TRAINER, json.dumps(contents.trainer, indent=2)),
        (names.CONFIG, json.dumps(contents.config, indent=2)),
        (names.TOKENIZER, contents.tokenizer_json),
    ):
        write_flushed(unfinished / name, text)
        files[name] = hash_file(unfinished / name).model_dump()
    manifest = {
        "format": names.FORMAT_VERSION,
        "step": step,
        "dataset_fingerprint": contents.dataset_fingerprint,
        "config_fingerprint": fingerprint_of(contents.config.get("run", {})),
        "topology": contents.topology,
        "val_bpb": contents.val_bpb,
        "val_tokens": contents.val_tokens,
        "files": dict(sorted(files.items())),
    }
    manifest["seal"] = seal_of(manifest)
    write_flushed(unfinished / names.MANIFEST, json.dumps(manifest, indent=2) + "\n")
    flush_to_disk(unfinished)
