"""An engine on one device, with a model so small that a step takes milliseconds."""

import torch

from storyteller_ds.config.load import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine

LR = 1e-2
SETTINGS = {
    "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 16},
    "moe": {"num_experts": 4},
    "data": {"sequence_length": 8},
    "tokenizer": {"vocab_size": 32},
}


def small_preset(name: str) -> RunConfig:
    """A preset at the sizes of SETTINGS, with its own operators, optimizer and balance losses."""
    run = load_config(name).run.model_dump(exclude_unset=True)
    heads = {"num_kv_heads": None, "context_length": None, "size": None}
    for section, settings in {**SETTINGS, "model": {**SETTINGS["model"], **heads}}.items():
        run[section] = {**run.get(section, {}), **settings}
    run["moe"]["num_experts"] = 4 if load_config(name).run.moe_layers else 0
    run["train"] = {"compile": "off"}
    return RunConfig.model_validate(run)


def make_engine(dtype: str, kind: str = "adamw") -> SingleEngine:
    """The engine with this precision.dtype and optimizer.kind."""
    run = RunConfig.model_validate({**SETTINGS, "precision": {"dtype": dtype}, "optimizer": {"kind": kind}})
    return SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu"))


def batch(seed: int) -> MicroBatch:
    """Two sequences of random tokens."""
    token = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(seed))
    return MicroBatch(token[:, :-1], token[:, 1:])


def state(engine: SingleEngine) -> dict[tuple[str, str], torch.Tensor]:
    """A copy of the weights and moments, keyed by kind and name."""
    return {(kind, name): tensor.clone() for kind, name, tensor in engine.named_state()}
