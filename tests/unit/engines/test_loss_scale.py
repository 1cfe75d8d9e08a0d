"""fp16 on one device: a step whose scaled gradient overflows changes nothing but the scale."""

import math

import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batches import MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import LossScale
from storyteller_ds.engines.single import SingleEngine

SETTINGS = {
    "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 16},
    "moe": {"num_experts": 4},
    "data": {"sequence_length": 8},
    "tokenizer": {"vocab_size": 32},
}
LR = 1e-2


def make_engine(dtype: str) -> SingleEngine:
    run = RunConfig.model_validate({**SETTINGS, "precision": {"dtype": dtype}})
    return SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu"))


def batch() -> MicroBatch:
    token = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(3))
    return MicroBatch(token[:, :-1], token[:, 1:])


def weights(engine: SingleEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for kind, name, tensor in engine.named_state() if kind == "weight"}


def updates(engine: SingleEngine) -> float:
    return float(next(iter(engine.optimizer.state.values()))["step"])


def test_fp16_trains_and_the_norm_is_of_the_unscaled_gradient():
    engine, exact = make_engine("fp16"), make_engine("fp32")
    before = weights(engine)
    ours, expected = engine.train_step([batch()], LR), exact.train_step([batch()], LR)
    assert not ours.skipped
    assert ours.loss == pytest.approx(expected.loss, rel=1e-3)
    assert ours.grad_norm == pytest.approx(expected.grad_norm, rel=1e-2)
    assert engine.loss_scale == LossScale(2.0**16, 1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(engine).items())


def test_an_overflow_skips_the_step_and_halves_the_scale():
    engine = make_engine("fp16")
    engine.train_step([batch()], LR)
    read = {(kind, name): tensor.clone() for kind, name, tensor in engine.named_state()}
    engine.load_named_state(lambda kind, name: read[kind, name], 1, LossScale(2.0**40, 7))
    before = weights(engine)
    result = engine.train_step([batch()], LR)
    assert result.skipped
    assert math.isfinite(result.loss), "the forward pass is not scaled"
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(engine).items())
    assert updates(engine) == 1
    assert engine.loss_scale == LossScale(2.0**39, 0)


def test_the_scale_is_put_back_with_the_weights():
    engine, other = make_engine("fp16"), make_engine("fp16")
    engine.train_step([batch()], LR)
    read = {(kind, name): tensor.clone() for kind, name, tensor in engine.named_state()}
    other.load_named_state(lambda kind, name: read[kind, name], 1, LossScale(2.0**10, 5))
    assert other.loss_scale == LossScale(2.0**10, 5)
    assert updates(other) == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_other_formats_have_no_scale(dtype):
    engine = make_engine(dtype)
    engine.train_step([batch()], LR)
    assert engine.loss_scale is None
