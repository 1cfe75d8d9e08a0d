"""One rank of one row: a training run like any other, with a callback that measures what its records do not hold."""

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from storyteller_ds.certify.compare import write_rank
from storyteller_ds.certify.rows import PRESET, RUN, Placement
from storyteller_ds.certify.traffic import Traffic, counted
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config import load_config
from storyteller_ds.data.batching.batches import BatchSplit
from storyteller_ds.data.batching.loading import validation_batches
from storyteller_ds.data.corpus import open_corpus
from storyteller_ds.distributed.failures import says_peer_is_lost
from storyteller_ds.distributed.supervision.processes import ON_LINUX, signal_at_death_of_parent
from storyteller_ds.engines.base import StepResult
from storyteller_ds.errors import StorytellerError
from storyteller_ds.machine import peak_resident_bytes
from storyteller_ds.training.callbacks.callback import Callback
from storyteller_ds.training.trainer import Trainer

_ONLY_TRAIN = (
    "tracking.wandb=disabled",
    "tracking.report=false",
    "train.sample_prompts=[]",
    "train.eval_every_steps=0",
    "train.eval_batches=1",
    "checkpoint.every_steps=0",
)


FAILED, LOST_PEER = 1, 2
"""Exit codes of a rank: after an error of its own, and after one that only says that another rank is gone."""


def log_of(folder: Path, rank: int) -> Path:
    """What a rank and its libraries print; the last line of a rank that exits FAILED or LOST_PEER is its error."""
    return folder / f"rank{rank}.log"


def run_rank(placement: Placement, rank: int, port: int, corpus_key: str, folder: Path) -> NoReturn:
    """Be one rank of a row; ends this process, with exit code 0 if everything is written, else FAILED or LOST_PEER.

    Args:
        placement: the row.
        rank: this process's rank.
        port: where the ranks meet.
        corpus_key: key of the corpus, which is already prepared.
        folder: the run folder.
    """
    # Its own process group: Ctrl-C is for the command, which ends its ranks.
    os.setpgrp()
    if ON_LINUX:  # do not outlive the command, which may be killed
        signal_at_death_of_parent(signal.SIGKILL)
    output = os.open(log_of(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        _set_environment(placement, rank, port)
        row = placement.row
        overrides = [*RUN, *_ONLY_TRAIN, *row.overrides, f"parallel.device={placement.device}"]
        loaded = load_config(PRESET, overrides, ds_config=row.deepspeed, ranks=placement.ranks)
        Trainer(loaded, folder, [_Measurements(corpus_key)], resume="never").fit()
        code = 0
    except BaseException as error:
        code = LOST_PEER if says_peer_is_lost(error) else FAILED
        if isinstance(error, StorytellerError):
            print(error)
        else:
            traceback.print_exc()
            print(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip Python's finalization, which gloo's threads may not survive (docs/experiments.md).
    os._exit(code)


def _set_environment(placement: Placement, rank: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(placement.ranks),
        LOCAL_WORLD_SIZE=str(placement.ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR=placement.device,
        OMP_NUM_THREADS="1",
    )
    # The model is too small to share among cores, and one thread gives the same reduction order on every machine.
    torch.set_num_threads(1)
    if placement.device == "cuda":
        # For deterministic cuBLAS; must be set before the first matrix product.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)


class _Measurements(Callback):
    """Traffic of the training steps, and logits after the last."""

    def __init__(self, corpus_key: str) -> None:
        self.corpus_key = corpus_key
        self.traffic = Traffic()
        self.in_training = contextlib.ExitStack()

    def on_start(self, state: TrainState) -> None:
        """Start measuring."""
        del state
        self.traffic = self.in_training.enter_context(counted())

    def on_result(self, state: TrainState, result: StepResult) -> TrainState:
        """Stop measuring after the last step, before the validation."""
        del result
        if state.step == self.trainer.run.train.max_steps:
            self.in_training.close()
        return state

    def on_step_end(self, state: TrainState, last: bool) -> None:
        """Write all measurements after the last step."""
        if last:
            write_rank(
                self.trainer.output_dir,
                self.trainer.world.rank,
                sent_bytes=torch.tensor(self.traffic.sent_bytes),
                peak_memory_bytes=torch.tensor(_peak_memory(self.trainer.engine.device)),
                logits_BSV=self._held_logits(),
            )

    @torch.no_grad()
    def _held_logits(self) -> Tensor:
        """[B, S, V] fp32: this rank's part of the first validation batch; the ranks' parts are in rank order."""
        run, world, engine = self.trainer.run, self.trainer.world, self.trainer.engine
        corpus = open_corpus(run, self.corpus_key)
        split = BatchSplit(world.rank, world.size, run.train.global_batch_size // world.size, 1)
        batches = validation_batches(run, corpus, split)
        token_BS = next(batches.batches(1)).token_BS
        engine.decoder.eval()
        logits_BSV: Tensor = engine.decoder(token_BS.to(engine.device))[0].float().cpu()
        return logits_BSV


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
