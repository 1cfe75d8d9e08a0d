"""A step on a GPU waits for no number: nothing is read by the host, and the bits are those of a step that reads."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines import step as steps
from storyteller_ds.engines.single import SingleEngine
from tests.support.small_engine import LR, SETTINGS, batch, state

_aten = torch.ops.aten
READS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default, _aten.equal.default}
"""What makes the host wait for a GPU: numbers, and shapes that depend on numbers."""
LAYERS = 2


class Reads(TorchDispatchMode):
    """Counts what the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += operation in READS
        return operation(*args, **(kwargs or {}))


def engine_of(dtype: str, kind: str, experts: int) -> SingleEngine:
    settings = {**SETTINGS, "moe": {"num_experts": experts}}
    run = RunConfig.model_validate({**settings, "precision": {"dtype": dtype}, "optimizer": {"kind": kind}})
    return SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu"))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_nothing_is_read_in_a_step(dtype, kind, monkeypatch):
    monkeypatch.setattr(steps, "reading_is_free", lambda device: False)
    engine = engine_of(dtype, kind, experts=0)
    with Reads() as reads:
        begun = [engine.begin_step([batch(seed)], LR) for seed in range(3)]
        assert reads.number == 3 * TARGETS_ON_THE_HOST
        reads.number = 0
        assert len(steps.finished(begun)) == 3
    assert reads.number == 0  # one transfer, of a tensor


TARGETS_ON_THE_HOST = 1
"""Batches come from the host, which counts their targets."""


def test_negative_control_a_cpu_reads():
    engine = engine_of("fp32", "adamw", experts=0)
    with Reads() as reads:
        engine.begin_step([batch(0)], LR)
    assert reads.number > TARGETS_ON_THE_HOST


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_bits_are_the_same(dtype, kind, monkeypatch):
    states, results = [], []
    for free in (True, False):
        monkeypatch.setattr(steps, "reading_is_free", lambda device, free=free: free)
        engine = engine_of(dtype, kind, experts=4)
        begun = [engine.begin_step([batch(seed)], LR) for seed in range(5)]
        results.append(steps.finished(begun))
        states.append(state(engine))
    assert results[0] == results[1]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
