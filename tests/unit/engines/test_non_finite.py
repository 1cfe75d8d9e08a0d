"""One device: a step whose loss or gradient is not finite leaves weights, moments and loss scale as they were."""

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


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(tensor.view(torch.int32), other[name].view(torch.int32)) for name, tensor in one.items())


def faulty_step(engine: SingleEngine, fault: str):
    if fault == "loss":
        forward = engine.decoder.forward

        def undefined(*args, **kwargs):
            nll, layers = forward(*args, **kwargs)
            return nll + math.nan * nll.detach(), layers  # its value only; the gradient is fine

        engine.decoder.forward = undefined
        result = train_step(engine, [batch(9)], LR)
        engine.decoder.forward = forward
        return result
    value = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[fault]
    weight = engine.decoder.blocks[1].ffn.experts.down_proj
    hook = weight.register_hook(lambda g: torch.cat([g[:3], torch.full_like(g[3:], value)]))
    result = train_step(engine, [batch(9)], LR)
    hook.remove()
    return result


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", ["loss", "nan", "inf", "-inf"])
def test_the_step_is_skipped_and_forgotten(fault: str, dtype: str, kind: str):
    engine, whole = make_engine(dtype, kind), make_engine(dtype, kind)
    train_step(engine, [batch(1)], LR)
    before = state(engine)
    result = faulty_step(engine, fault)
    assert result.skipped
    assert result.non_finite == ("loss" if fault == "loss" else "gradient")
    assert same(before, state(engine))
    assert all(parameter.grad is None for parameter in engine.decoder.parameters())
    train_step(whole, [batch(1)], LR)
    assert train_step(engine, [batch(2)], LR) == train_step(whole, [batch(2)], LR)
    assert same(state(engine), state(whole))


def test_the_first_step_may_be_the_bad_one():
    engine, whole = make_engine("fp32"), make_engine("fp32")
    assert faulty_step(engine, "nan").skipped
    assert train_step(engine, [batch(2)], LR) == train_step(whole, [batch(2)], LR)
    assert same(state(engine), state(whole))


def with_scale(scale: float) -> SingleEngine:
    engine = make_engine("fp16")
    train_step(engine, [batch(1)], LR)
    read = state(engine)
    engine.load_named_state(lambda kind, name: read[kind, name], 1, 1, LossScale(scale, 5))
    return engine


@pytest.mark.parametrize(
    ("fault", "scale", "cause", "after"),
    [
        ("loss", 2.0**10, "loss", LossScale(2.0**10, 5)),  # no scale fixes a loss
        ("inf", 2.0**10, None, LossScale(2.0**9, 0)),  # maybe an overflow
        ("nan", 2.0**10, None, LossScale(2.0**9, 0)),
        ("inf", 1.0, "gradient", LossScale(1.0, 5)),  # no overflow, as nothing was scaled
        ("loss", 1.0, "loss", LossScale(1.0, 5)),
    ],
)
def test_fp16_blames_the_scale_only_while_it_can_fall(fault: str, scale: float, cause: str | None, after: LossScale):
    engine = with_scale(scale)
    before = state(engine)
    result = faulty_step(engine, fault)
    assert result.skipped
    assert result.non_finite == cause
    assert engine.loss_scale == after
    assert same(before, state(engine))
    assert not train_step(engine, [batch(2)], LR).skipped
    assert not same(before, state(engine))


def test_negative_control_without_the_guard_the_weights_are_lost(monkeypatch: pytest.MonkeyPatch):
    engine = make_engine("fp32")
    monkeypatch.setattr("storyteller_ds.engines.step.verdict", lambda loss, *rest: torch.zeros_like(loss))
    faulty_step(engine, "nan")
    monkeypatch.undo()
    assert not all(tensor.isfinite().all() for tensor in state(engine).values())
