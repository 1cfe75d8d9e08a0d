"""A step on a GPU never waits: the host reads nothing, and the result is bit-identical to a step that reads."""

import pytest
import torch

from storyteller_ds.config.files import preset_names
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines import step as steps
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.model.moe import experts
from tests.support.grouped_experts import grouped_experts
from tests.support.host_reads import HostReads
from tests.support.small_engine import LR, SETTINGS, batch, small_preset, state

TARGETS_ON_THE_HOST = 1
"""Batches come from the host, which counts their targets."""
ONE_TRANSFER = 1


def engine_of(dtype: str, kind: str, moe: dict[str, object]) -> SingleEngine:
    settings = {**SETTINGS, "moe": moe, "precision": {"dtype": dtype}, "optimizer": {"kind": kind}}
    return SingleEngine(RunConfig.model_validate(settings), World(0, 0, 1, 1), torch.device("cpu"))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "reading_is_free", lambda device: False)
    monkeypatch.setattr(experts, "expert_mlp", grouped_experts)


MODELS = {
    "dense": {"num_experts": 0},
    "mixture": {"num_experts": 4, "balance_scope": "batch"},
    "balanced by sequence": {"num_experts": 4, "balance_scope": "sequence", "noisy_gating": True},
}


@pytest.mark.parametrize("moe", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_nothing_is_read_in_a_step(dtype, kind, moe):
    engine = engine_of(dtype, kind, moe)
    with HostReads() as reads:
        begun = [engine.begin_step([batch(seed)], LR) for seed in range(3)]
        assert reads.number == 3 * TARGETS_ON_THE_HOST
        reads.number = 0
        assert len(steps.finished(begun)) == 3
    assert reads.number == ONE_TRANSFER


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.usefixtures("as_on_a_gpu")
def test_nothing_is_read_in_a_step_of_any_preset(name):
    engine = SingleEngine(small_preset(name), World(0, 0, 1, 1), torch.device("cpu"))
    with HostReads() as reads:
        begun = [engine.begin_step([batch(seed)], LR) for seed in range(3)]
        assert reads.number == 3 * TARGETS_ON_THE_HOST
        assert len(steps.finished(begun)) == 3


def test_negative_control_a_cpu_reads():
    engine = engine_of("fp32", "adamw", {"num_experts": 0})
    with HostReads() as reads:
        engine.begin_step([batch(0)], LR)
    assert reads.number > TARGETS_ON_THE_HOST


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_bits_are_the_same(dtype, kind, monkeypatch):
    states, results = [], []
    for free in (True, False):
        monkeypatch.setattr(steps, "reading_is_free", lambda device, free=free: free)
        engine = engine_of(dtype, kind, {"num_experts": 4})
        begun = [engine.begin_step([batch(seed)], LR) for seed in range(5)]
        results.append(steps.finished(begun))
        states.append(state(engine))
    assert results[0] == results[1]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("moe", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("compiled", ["on", "off"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_on_a_gpu_nothing_is_waited_for(kind, compiled, moe):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    settings = {**SETTINGS, "moe": moe, "optimizer": {"kind": kind}, "train": {"compile": compiled}}
    engine = SingleEngine(RunConfig.model_validate(settings), World(0, 0, 1, 1), torch.device("cuda", 0))
    steps.finished([engine.begin_step([batch(seed)], LR) for seed in range(3)])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        begun = [engine.begin_step([batch(seed)], LR) for seed in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps.finished(begun)) == 3
