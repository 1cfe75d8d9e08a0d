"""Clipping, against the same in fp64 by hand."""

import pytest
import torch
from torch import nn

from storyteller_ds.engines.step import clip_gradients


def module_with_gradients() -> nn.Module:
    module = nn.ParameterList([nn.Parameter(torch.zeros(512, 700)), nn.Parameter(torch.zeros(33))])
    generator = torch.Generator().manual_seed(0)
    for parameter in module:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-2
    return module


def norm_in_fp64(module: nn.Module) -> float:
    return float(torch.cat([p.grad.double().flatten() for p in module.parameters()]).norm())


def test_the_norm_is_exact_to_fp64_rounding():
    module = module_with_gradients()
    assert clip_gradients(module, 0.0) == pytest.approx(norm_in_fp64(module), rel=1e-12)


@pytest.mark.parametrize(("limit", "after"), [(0.0, None), (1e3, None), (0.5, 0.5)])
def test_the_norm_after_clipping(limit, after):
    module = module_with_gradients()
    before = norm_in_fp64(module)
    returned = clip_gradients(module, limit)
    assert returned == pytest.approx(before, rel=1e-12)
    assert norm_in_fp64(module) == pytest.approx(before if after is None else after, rel=1e-5)


def test_what_it_replaces_was_not_that_exact():
    """Negative control: with torch's own fp32 sum the first test would fail."""
    module = module_with_gradients()
    expected = norm_in_fp64(module)
    assert abs(float(nn.utils.clip_grad_norm_(module.parameters(), 1e9)) / expected - 1) > 1e-8
