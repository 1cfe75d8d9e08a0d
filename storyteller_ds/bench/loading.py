"""How fast token shards become batches, and what fraction of a training step that takes."""

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from storyteller_ds.bench.roofline import random_batches, step_time
from storyteller_ds.bench.timing import seconds_of
from storyteller_ds.config.data import Packing
from storyteller_ds.config.load import load_config
from storyteller_ds.data.batching.batches import BatchSplit, TrainBatches
from storyteller_ds.data.batching.loading import sequences_of
from storyteller_ds.data.shards import TokenStream, open_shard, write_shards
from storyteller_ds.distributed.plan import make_plan

_DOCUMENTS, _MEDIAN, _SPREAD = 40_000, 200, 0.5
"""Number of stories, and median and spread of their lengths (tokens, log-normal), similar to TinyStories."""
_STEPS, _ROUNDS = 100, 5


@dataclass(frozen=True)
class LoadingRate:
    """What was measured for one packing."""

    packing: str
    rate: float
    """Tokens per second, without padding."""
    limit: float
    """The rate if a batch were just two in-order copies of as many ids."""
    part_of_step: float
    """Fraction of a step of the preset that its batches take, on one device."""

    def line(self) -> str:
        """The result in one line for people."""
        return (
            f"batches: {self.rate / 1e6:.0f} million tokens/s ({self.packing}) from warm shards; limit "
            f"{self.limit / 1e6:.0f}: two copies as int64; {self.part_of_step:.2%} of a step of quickstart on this CPU"
        )


def measure() -> list[LoadingRate]:
    """Read batches of random tokens from a temporary folder, with all packings in turn."""
    run = load_config("quickstart").run
    plan = make_plan(run, 1)
    step_s = step_time(run, random_batches(run, plan), torch.device("cpu"))
    split = BatchSplit(0, 1, plan.micro_batch_size, plan.accumulation_steps)
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), run.tokenizer.vocab_size
        names = write_shards(folder, "train", _documents(rows), rows, 1 << 40)
        stream = TokenStream([open_shard(folder / name, rows) for name in names])
        batches = {}
        for packing in get_args(Packing):
            data = run.data.model_copy(update={"packing": packing})
            batches[packing] = TrainBatches(sequences_of(data, stream, 0, None, False), "bench", 0, split)
        seconds: dict[str, list[float]] = {packing: [] for packing in batches}
        copies = []
        positions = _STEPS * split.global_batch_size * run.data.sequence_length
        for start in range(_ROUNDS):
            for packing, each in batches.items():
                begin = start * _STEPS * split.global_batch_size
                seconds[packing].append(seconds_of(partial(_read, each, begin)))
            copies.append(seconds_of(lambda: [stream.read(0, positions) for _ in range(2)]))
    rates = []
    for packing, each in batches.items():
        taken = statistics.median(seconds[packing])
        filled = (len(stream) - 1) / (each.order.sequences * run.data.sequence_length)
        limit = positions / statistics.median(copies)
        rates.append(LoadingRate(packing, min(1.0, filled) * positions / taken, limit, taken / _STEPS / step_s))
    return rates


def _documents(rows: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    yield np.zeros(1, dtype=np.int64)
    for size in rng.lognormal(np.log(_MEDIAN), _SPREAD, _DOCUMENTS).astype(int):
        yield np.append(rng.integers(1, rows, size), 0)


def _read(batches: TrainBatches, begin: int) -> None:
    for step in range(_STEPS):
        batches.step(begin + step * batches.samples_of_a_step)
