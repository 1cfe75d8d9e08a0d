"""Rounding of weights to 8 and 4 bits, against rounding in fp64 one number at a time."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import Decoder, empty_decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.quantized import (
    Quantized,
    bits_of,
    dequantize,
    fill,
    held_quantized,
    hold_quantized,
    quantize,
    stored_shapes,
)

MOST = {8: 127, 4: 7}


def nearest(value: float, scale: float) -> int:
    """Return which multiple of the scale is nearest to a value; ties go to the even one."""
    exact = value / scale
    below = math.floor(exact)
    if exact - below == 0.5:
        return below + below % 2
    return below + (exact - below > 0.5)


def reference(row: np.ndarray, bits: int) -> tuple[list[int], list[np.float32]]:
    """Compute the integers and scales of one row, one number at a time."""
    group = len(row) if bits == 8 else 32
    whole, scales = [], []
    for begin in range(0, len(row), group):
        numbers = [float(number) for number in row[begin : begin + group]]
        scale = np.float32(max(map(abs, numbers)) / MOST[bits])
        scales.append(scale)
        whole += [nearest(number, float(scale)) if scale else 0 for number in numbers]
    return whole, scales


def integers(quantized: Quantized) -> torch.Tensor:
    """Return the integers [..., R, C]; those of 4 bits are unpacked byte by byte."""
    values = quantized.values
    if values.dtype == torch.int8:
        return values.long()
    rows = []
    for row in values.flatten(0, -2).tolist():
        numbers: list[int] = []
        for begin in range(0, len(row), 16):
            numbers += [byte % 16 - 8 for byte in row[begin : begin + 16]]
            numbers += [byte // 16 - 8 for byte in row[begin : begin + 16]]
        rows.append(numbers)
    return torch.tensor(rows).view(*values.shape[:-1], -1)


def weights(*shape: int) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    weight[..., 0, :] *= 1e-6
    weight[..., 1, :] = 0
    # With 4 bits, the scale is 1, and halves are equally far from two integers.
    weight[..., 2, :32] = (torch.arange(32) / 2 - 8).clamp(-7, 7)
    return weight


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(5, 64), (3, 4, 96)], ids=str)
def test_rounding_is_to_the_nearest(bits, shape):
    weight = weights(*shape)
    found = quantize(weight, bits)
    assert (tuple(found.values.shape), tuple(found.scale.shape)) == stored_shapes(shape, bits)
    rows, scales, whole = weight.flatten(0, -2).numpy(), found.scale.flatten(0, -2), integers(found).flatten(0, -2)
    back = dequantize(found).flatten(0, -2).numpy()
    for row, scale, integer, value in zip(rows, scales.numpy(), whole.tolist(), back, strict=True):
        expected, expected_scales = reference(row, bits)
        assert integer == expected
        assert scale.tolist() == expected_scales
        each = np.repeat(np.array(expected_scales, np.float32), len(row) // len(expected_scales))
        assert np.array_equal(value, np.array(expected, np.float32) * each)
        assert np.all(abs(value.astype(np.float64) - row) <= each / 2 * (1 + 1e-6))


def test_odd_numbers_of_columns_have_8_bits():
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    assert (dequantize(quantize(weight, 8)) - weight).abs().max() < weight.abs().max() / 250


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [1e-44, 1e-30, 3e38])
def test_very_small_and_very_large_numbers(bits, value):
    weight = torch.full((2, 32), value)
    found = dequantize(quantize(weight, bits))
    assert torch.isfinite(found).all()
    assert ((found - weight).abs() <= max(1e-6 * value, 1e-42)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value):
    weight = torch.zeros(2, 32)
    weight[1, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, 8)


def run(tied: bool, experts: int, width: int = 64, **model: object) -> RunConfig:
    return RunConfig.model_validate({
        "model": {"hidden_size": width, "num_layers": 2, "num_heads": 2, "intermediate_size": 32, "init_std": 0.2,
                  "tie_embeddings": tied, **model},
        "moe": {"num_experts": experts, "noisy_gating": bool(experts)},
        "data": {"sequence_length": 16},
        "tokenizer": {"vocab_size": 50},
    })  # fmt: skip


def shapes_of(run: RunConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter, *_ in placed_parameters(empty_decoder(run))}


def test_only_matrices_of_products_are_quantized():
    everything = {"bias": True, "position": "learned", "norm": "layernorm", "value_embeddings": True, "qk_norm": True}
    shapes = shapes_of(run(True, 4, residual_scales=True, **everything))
    chosen = bits_of(shapes, 4)
    layer = ["attention.q_proj.weight", "attention.k_proj.weight", "attention.v_proj.weight", "attention.o_proj.weight"]
    layer += ["ffn.experts.gate_up_proj", "ffn.experts.down_proj"]
    expected = {f"blocks.{i}.{name}": 4 for i in range(2) for name in layer}
    assert chosen == {"embedding.weight": 8, **expected}
    assert bits_of(shapes, 8) == dict.fromkeys(chosen, 8)
    dense = bits_of(shapes_of(run(False, 0)), 4)
    assert {"lm_head.weight", "blocks.1.ffn.gate_up_proj.weight", "blocks.1.ffn.down_proj.weight"} <= dense.keys()
    assert "embedding.weight" not in dense
    odd = bits_of(shapes_of(run(False, 0, width=40)), 4)
    assert {odd["lm_head.weight"], odd["blocks.0.attention.q_proj.weight"]} == {8}
    assert odd["blocks.0.ffn.down_proj.weight"] == 4


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("tied", "experts"), [(True, 4), (False, 0)])
def test_a_model_that_holds_them_computes_what_the_dequantized_one_does(bits, tied, experts):
    config = run(tied, experts)
    plain, held = Decoder(config).eval(), empty_decoder(config).eval()
    init_parameters(plain, config.model, 5)
    chosen = bits_of(shapes_of(config), bits)
    hold_quantized(held, chosen)
    held.to_empty(device="cpu")
    for name, parameter, *_ in placed_parameters(plain):
        assert (held_quantized(held, name) is not None) == (name in chosen)
        value = quantize(parameter, chosen[name]) if name in chosen else parameter
        fill(held, name, value)
        fill(plain, name, value)
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(1))
    assert torch.equal(held(tokens)[0], plain(tokens)[0])
    # Under their canonical names both have the same parameters.
    seen = {name: parameter for name, parameter, *_ in placed_parameters(held)}
    assert seen.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(seen[name], parameter) for name, parameter in plain.named_parameters())
    room = sum(p.numel() * p.element_size() for p in held.parameters())
    assert room < sum(p.numel() * 4 for p in plain.parameters()) / 2
    assert not any(
        isinstance(p, nn.Parameter) and p.requires_grad for n, p in held.named_parameters() if "original" in n
    )
