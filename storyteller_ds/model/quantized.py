"""Weights as small integers with scales, for generation: w = scale * q, rounded to nearest.

Symmetric ("absmax", LLM.int8(), 2208.07339, sec. 2.1) and without calibration, like the baseline of GPTQ (2210.17323):

- 8 bits: q in -127 .. 127, and one scale per row, its largest magnitude divided by 127;
- 4 bits: q in -7 .. 7, and one scale per GROUP neighbors in a row, their largest magnitude divided by 7.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from storyteller_ds.model.canonical import is_embedding

GROUP = 32
"""Number of 4-bit entries that share a scale."""
_MOST = {8: 127, 4: 7}
_ZERO = 8
"""Added to a 4-bit number to make it unsigned."""


class Quantized(NamedTuple):
    """A matrix, or a stack of them."""

    values: Tensor
    """8 bits: [..., R, C] int8. 4 bits: [..., R, C / 2] uint8; of a group's 16 bytes, byte j holds number j in its
    lower half and number j + 16 in its upper half, each plus 8."""
    scale: Tensor
    """fp32, 8 bits: [..., R, 1], 4 bits: [..., R, C / GROUP]."""


def bits_of(shapes: Mapping[str, tuple[int, ...]], bits: int) -> dict[str, int]:
    """The parameters to quantize, and the number of bits of each.

    These are the weights of matrix products: attention, feed-forward layers, experts and the output projection. Norms,
    biases, routers and tables that are only looked up stay fp32: they are small, or only one row is read per token. An
    embedding that is also the output projection is quantized to 8 bits: a product reads all of it, and its rounding
    errors act both at the input and at the output. So is a matrix whose rows are not whole groups.

    Args:
        shapes: shapes of the model's parameters, by canonical name.
        bits: 8 or 4.
    """
    tied = "lm_head.weight" not in shapes
    chosen = {}
    for name, shape in shapes.items():
        if name == "embedding.weight" and tied:
            chosen[name] = 8
        elif name == "lm_head.weight" or (name.endswith(("_proj.weight", "_proj")) and not is_embedding(name)):
            chosen[name] = 8 if shape[-1] % GROUP else bits
    return chosen


def stored_shapes(shape: tuple[int, ...], bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the values and the scale of a weight of this shape."""
    *rows, columns = shape
    return ((*rows, columns), (*rows, 1)) if bits == 8 else ((*rows, columns // 2), (*rows, columns // GROUP))


def quantize(weight: Tensor, bits: int) -> Quantized:
    """Quantize a weight [..., R, C], in fp64 so that no quotient is rounded to a half.

    Raises:
        ValueError: the weight is not finite.
    """
    most, group = _MOST[bits], weight.shape[-1] if bits == 8 else GROUP
    groups = weight.double().unflatten(-1, (-1, group))
    scale = (groups.abs().amax(-1, keepdim=True) / most).float()
    if not torch.isfinite(scale).all():
        raise ValueError("it is not finite")
    whole = (groups / scale).round().clamp(-most, most).where(scale > 0, 0).to(torch.int8)
    if bits == 8:
        return Quantized(whole.flatten(-2), scale.squeeze(-1))
    low, high = (whole + _ZERO).to(torch.uint8).chunk(2, dim=-1)
    return Quantized((low | high << 4).flatten(-2), scale.squeeze(-1))


def dequantize(quantized: Quantized) -> Tensor:
    """The weight [..., R, C] fp32."""
    values, scale = quantized
    if values.dtype == torch.uint8:
        halves = values.unflatten(-1, (-1, GROUP // 2))
        values = torch.cat([halves & 15, halves >> 4], dim=-1).to(torch.int8) - _ZERO
    else:
        values = values.unflatten(-1, (1, -1))
    return (values * scale.unsqueeze(-1)).flatten(-2)


class _Dequantized(nn.Module):
    """Computes a weight from its stored form every time it is used."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, values: Tensor, scale: Tensor) -> Tensor:
        return dequantize(Quantized(values, scale))

    def right_inverse(self, weight: Tensor) -> Quantized:
        """Uninitialized storage for the weight."""
        values, scale = stored_shapes(tuple(weight.shape), self.bits)
        dtype = torch.int8 if self.bits == 8 else torch.uint8
        return Quantized(weight.new_empty(values, dtype=dtype), weight.new_empty(scale))


def hold_quantized(module: nn.Module, bits: Mapping[str, int]) -> None:
    """Make a module store these parameters quantized, uninitialized at first, and dequantize each when it is used.

    This saves memory but costs time: a forward pass writes and reads every weight once more.
    """
    for name, of_name in bits.items():
        owner, _, last = name.rpartition(".")
        holder = module.get_submodule(owner)
        holder.get_parameter(last).requires_grad_(False)
        parametrize.register_parametrization(holder, last, _Dequantized(of_name), unsafe=True)


def held_quantized(module: nn.Module, name: str) -> Quantized | None:
    """The stored form of a parameter; None: it is not quantized."""
    owner, _, last = name.rpartition(".")
    holder = module.get_submodule(owner)
    if not parametrize.is_parametrized(holder, last):
        return None
    stored = cast(Any, holder.parametrizations)[last]
    return Quantized(stored.original0, stored.original1)


@torch.no_grad()
def fill(module: nn.Module, name: str, value: Tensor | Quantized) -> None:
    """Set a parameter; if the module holds it quantized, the value must be quantized too."""
    held = held_quantized(module, name)
    if held is None:
        module.get_parameter(name).copy_(dequantize(value) if isinstance(value, Quantized) else value)
    else:
        assert isinstance(value, Quantized)
        held.values.copy_(value.values)
        held.scale.copy_(value.scale)
