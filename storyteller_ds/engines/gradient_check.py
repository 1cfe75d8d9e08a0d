"""The self-test of a run: one step of a small copy of its model on its topology and on one device.

Before hours are spent, it finds a driver, network or library on the user's machine that computes wrong gradients.
`storyteller certify` compares whole runs.
"""

import gc
from collections.abc import Mapping
from typing import Any

import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import Engine
from storyteller_ds.engines.build import build_engine
from storyteller_ds.engines.differences import differences, largest
from storyteller_ds.engines.precision import run_dtype
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.engines.step import train_step
from storyteller_ds.errors import TrainingStopped

TOKENS = 64
"""Longest sequence of the test; each rank has one."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest allowed relative difference of a gradient tensor (Frobenius norm). In half precision, rounding may send a
token to another expert, so only gross errors are found."""


def check_gradients(run: RunConfig, ds_config: Mapping[str, Any], world: World, device: torch.device) -> float:
    """The largest relative difference of the loss, the gradient norm and any tensor of the gradient.

    Called by every rank. AdamW's first moment after the first step is the clipped gradient times 1 - beta1,
    wherever ZeRO keeps it, so this compares the result of a whole training step.

    Raises:
        TrainingStopped: the difference is larger than rounding explains; names the tensor.
    """
    small = _small_copy(run, world.size)
    batch = _batch(small)
    mine = MicroBatch(batch.token_BS[world.rank : world.rank + 1], batch.target_BS[world.rank : world.rank + 1])
    engine = build_engine(small, ds_config, make_plan(small, world.size), world, device)
    ours = _one_step(engine, mine, small)
    alone = World(rank=0, local_rank=world.local_rank, size=1, local_size=1)
    reference = _one_step(SingleEngine(small, alone, device), batch, small)
    del engine
    gc.collect()
    name, difference = largest(differences(ours, reference))
    if not difference <= TOLERANCES[run_dtype(run, device)]:
        raise TrainingStopped(
            f"self-test: the {name} on {world.size} rank(s) differs from that on one device by "
            f"{difference:.1e} of its norm, so this run is not started; `storyteller certify` shows which "
            "topologies agree on this machine"
        )
    return difference


def _small_copy(run: RunConfig, world_size: int) -> RunConfig:
    """The run with the fewest blocks that include an MoE layer, short sequences and no randomness in training."""
    blocks = min(run.model.num_layers, run.moe.every_n_layers)
    length = min(TOKENS, run.data.sequence_length)
    train = {"global_batch_size": world_size, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
    return run.model_copy(
        update={
            "model": run.model.model_copy(update={"num_layers": blocks, "dropout": 0.0}),
            "moe": run.moe.model_copy(update={"noisy_gating": False}),
            "data": run.data.model_copy(update={"sequence_length": length}),
            "train": run.train.model_copy(update=train),
        }
    )


def _batch(run: RunConfig) -> MicroBatch:
    """The same random tokens on every rank."""
    shape = (run.train.global_batch_size, run.data.sequence_length + 1)
    token = torch.randint(run.tokenizer.vocab_size, shape, generator=torch.Generator().manual_seed(run.seed))
    return MicroBatch(token[:, :-1].contiguous(), token[:, 1:].contiguous())


def _one_step(engine: Engine, batch: MicroBatch, run: RunConfig) -> dict[str, torch.Tensor]:
    result = train_step(engine, [batch], run.optimizer.lr)
    gradient = {
        f"gradient of {name}": tensor.double() for kind, name, tensor in engine.named_state() if kind == "exp_avg"
    }
    # Clipping hides a wrong scale of the gradient; the norm before clipping shows it.
    return {"loss": torch.tensor(result.loss), "gradient norm": torch.tensor(result.grad_norm), **gradient}
