"""fp16 on one device: a step whose scaled gradient overflows changes nothing but the scale."""

import math

import pytest
import torch

from storyteller_ds.engines import step as steps
from storyteller_ds.engines.base import LossScale
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.engines.step import train_step
from tests.support.small_engine import LR, batch, make_engine, state


@pytest.fixture(params=["host", "device"], autouse=True)
def decided_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "reading_is_free", lambda device: request.param == "host")


def weights(engine: SingleEngine) -> dict[str, torch.Tensor]:
    return {name: tensor for (kind, name), tensor in state(engine).items() if kind == "weight"}


def updates(engine: SingleEngine) -> float:
    return float(next(iter(engine.optimizer.state.values()))["step"])


def test_fp16_trains_and_the_norm_is_of_the_unscaled_gradient():
    engine, exact = make_engine("fp16"), make_engine("fp32")
    before = weights(engine)
    ours, expected = train_step(engine, [batch(3)], LR), train_step(exact, [batch(3)], LR)
    assert not ours.skipped
    assert ours.loss == pytest.approx(expected.loss, rel=1e-3)
    assert ours.grad_norm == pytest.approx(expected.grad_norm, rel=1e-2)
    assert engine.loss_scale == LossScale(2.0**16, 1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(engine).items())


def test_an_overflow_skips_the_step_and_halves_the_scale():
    engine = make_engine("fp16")
    train_step(engine, [batch(3)], LR)
    read = state(engine)
    engine.load_named_state(lambda kind, name: read[kind, name], 1, 1, LossScale(2.0**40, 7))
    before = weights(engine)
    result = train_step(engine, [batch(3)], LR)
    assert result.skipped
    assert math.isfinite(result.loss), "the forward pass is not scaled"
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(engine).items())
    assert updates(engine) == 1
    assert engine.loss_scale == LossScale(2.0**39, 0)


def test_the_scale_is_put_back_with_the_weights():
    engine, other = make_engine("fp16"), make_engine("fp16")
    train_step(engine, [batch(3)], LR)
    read = state(engine)
    other.load_named_state(lambda kind, name: read[kind, name], 1, 1, LossScale(2.0**10, 5))
    assert other.loss_scale == LossScale(2.0**10, 5)
    assert updates(other) == 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_other_formats_have_no_scale(dtype):
    engine = make_engine(dtype)
    train_step(engine, [batch(3)], LR)
    assert engine.loss_scale is None
