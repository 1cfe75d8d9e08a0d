"""Clipping and skipping: the same bits whether host or device decides, checked against fp64 by hand."""

import copy

import pytest
import torch
from torch import nn

from storyteller_ds.engines import step as steps
from storyteller_ds.engines.gradient_norm import squared_gradient
from storyteller_ds.engines.step import update, verdict


def module_with_gradients() -> nn.Module:
    module = nn.ParameterList([nn.Parameter(torch.zeros(512, 700)), nn.Parameter(torch.zeros(33))])
    generator = torch.Generator().manual_seed(0)
    for parameter in module:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-2
    return module


def norm_in_fp64(module: nn.Module) -> float:
    return float(torch.cat([p.grad.double().flatten() for p in module.parameters()]).norm())


def updated(module: nn.Module, limit: float, scale: torch.Tensor | None = None) -> None:
    """Clip the gradients; they are left as the optimizer would get them."""
    norm = squared_gradient(module.named_parameters()).norm()
    norm = norm if scale is None else norm / scale
    optimizer = torch.optim.SGD(module.parameters())
    update(optimizer, norm, verdict(torch.tensor(1.0).double(), norm), limit, scale, step=lambda: None)


@pytest.fixture(params=["host", "device"])
def decided_by(request, monkeypatch):
    monkeypatch.setattr(steps, "reading_is_free", lambda device: request.param == "host")


def test_the_norm_is_exact_to_fp64_rounding():
    module = module_with_gradients()
    assert float(squared_gradient(module.named_parameters()).norm()) == pytest.approx(norm_in_fp64(module), rel=1e-12)


def test_negative_control_torchs_own_norm_is_not_that_exact():
    module = module_with_gradients()
    expected = norm_in_fp64(module)
    assert abs(float(nn.utils.clip_grad_norm_(module.parameters(), 1e9)) / expected - 1) > 1e-8


@pytest.mark.usefixtures("decided_by")
@pytest.mark.parametrize("scale", [None, 2.0**10])
@pytest.mark.parametrize(("limit", "after"), [(0.0, None), (1e3, None), (0.5, 0.5)])
def test_the_norm_after_clipping(limit, after, scale):
    module = module_with_gradients()
    before = norm_in_fp64(module)
    if scale is not None:
        torch._foreach_mul_([p.grad for p in module.parameters()], scale)
    updated(module, limit, None if scale is None else torch.tensor(scale))
    assert norm_in_fp64(module) == pytest.approx(before if after is None else after, rel=1e-5)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e3])
def test_host_and_device_decide_the_same_bits(limit, monkeypatch):
    one = module_with_gradients()
    other = copy.deepcopy(one)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        theirs.grad = mine.grad.clone()
    updated(one, limit)
    monkeypatch.setattr(steps, "reading_is_free", lambda device: False)
    updated(other, limit)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
