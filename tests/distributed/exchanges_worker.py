"""One rank of training steps with expert parallelism: the messages between ranks, and the results.

Usage: torchrun exchanges_worker.py FOLDER; FOLDER/cases.json is a list of Case, FOLDER/rankN.json a list of reports.
"""

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from storyteller_ds.config import load_config
from storyteller_ds.data.batching.batches import BatchSplit
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.build import build_engine
from storyteller_ds.engines.step import train_step
from storyteller_ds.model.moe.router import Router
from tests.support.cases import run_cases
from tests.support.distributed import DS_CONFIGS
from tests.support.host_reads import HostReads

OVERRIDES = (
    "data.sequence_length=16",
    "tokenizer.vocab_size=64",
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.intermediate_size=32",
    "train.global_batch_size=4",
    "parallel.ep_size=2",
)
STEPS = 2


class Case(NamedTuple):
    mode: str
    """model.activation_checkpointing."""
    idle_rank: bool = False
    """Whether every token goes to the experts of rank 0, so that rank 1 gets no rows."""
    dropout: float = 0.0
    compiler: str = ""
    """The torch.compile backend for the blocks; empty: they are not compiled."""


class Exchanges(TorchDispatchMode):
    """Counts the all-to-alls that are actually issued, and the rows that each returns."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.rows: list[int] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if "all_to_all_single" in str(operation) or "alltoall_base" in str(operation):
            self.number += 1
            arrived = result if isinstance(result, torch.Tensor) else args[0]
            self.rows.append(len(arrived))
        return result


def run_case(case: Case, world: World) -> dict[str, Any]:
    device = torch.device("cpu")
    settings = (f"model.activation_checkpointing={case.mode}", f"model.dropout={case.dropout}")
    loaded = load_config(overrides=(*OVERRIDES, *settings), ds_config=DS_CONFIGS / "zero0.json")
    plan = make_plan(loaded.run, world.size)
    engine = build_engine(loaded.run, loaded.deepspeed, plan, world, device)
    if case.compiler:
        engine.decoder.run_block.compile(case.compiler)
    if case.idle_rank:
        for router in (module for module in engine.decoder.modules() if isinstance(module, Router)):
            # With equal scores for all experts, every token goes to the first two.
            torch.nn.init.zeros_(router.weight)
    torch.manual_seed(world.rank)
    losses, sent = [], []
    for step in range(STEPS):
        exchanges = Exchanges()
        # torch.compile does not work under a dispatch mode.
        with contextlib.nullcontext() if case.compiler else exchanges:
            losses.append(train_step(engine, _batch(loaded.run, world, step), 0.0 if case.idle_rank else 1e-2).loss)
        sent.append(exchanges.number)
    with HostReads() as reads:
        engine.decoder.blocks[0].ffn(torch.randn(2, 16, loaded.run.model.hidden_size))[0].sum().backward()
    state = {f"{kind}/{name}": tensor.numpy().tobytes() for kind, name, tensor in engine.named_state()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in state.items()}
    return {
        "reads": reads.number,
        "sent": sent,
        "fewest_rows": min(exchanges.rows, default=None),
        "losses": losses,
        "digests": digests,
    }


def _batch(run: Any, world: World, step: int) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(step)
    shape = (run.train.global_batch_size, run.data.sequence_length + 1)
    row = torch.randint(run.tokenizer.vocab_size, shape, generator=generator)
    mine = row[list(BatchSplit(world.rank, world.size, len(row) // world.size, 1).positions(0))]
    return [MicroBatch(mine[:, :-1].contiguous(), mine[:, 1:].contiguous())]


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), Case, run_case)
