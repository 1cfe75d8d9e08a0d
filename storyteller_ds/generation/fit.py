"""Whether the weights of a model fit into the memory of a device, before any is loaded."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.filesize import decimal

from storyteller_ds.checkpoint.quantized import stored_bytes
from storyteller_ds.engines.precision import DTYPE_NAMES
from storyteller_ds.errors import OutOfMemory
from storyteller_ds.generation.free_memory import free_bytes


def held_bits(
    shapes: Mapping[str, tuple[int, ...]],
    bits: int | None,
    device: torch.device,
    as_stored: bool,
    folder: Path,
    log: Callable[[str], None],
    dtype: torch.dtype = torch.float32,
) -> int | None:
    """The number of bits in which a device should hold the weights; None: in `dtype`.

    Args:
        shapes: shapes of the parameters, by canonical name.
        bits: number of bits that they are quantized to; None: not quantized.
        device: where they go.
        as_stored: hold quantized weights as they are, even if there is room for more.
        folder: folder of the checkpoint.
        log: gets a line if weights stay quantized for lack of room.
        dtype: dtype of weights that are not held quantized.

    Raises:
        OutOfMemory: they do not fit; names the number of bits in which they would.
    """
    free = free_bytes(device)
    needed = {way: stored_bytes(shapes, way) for way in (None, 8, 4)}
    needed[None] = needed[None] * dtype.itemsize // torch.float32.itemsize
    if needed[bits] > free:
        raise OutOfMemory(
            f"{folder}: the weights need {decimal(needed[bits])} in {_format(bits, dtype)}, and {device} has "
            f"{decimal(free)} free; {_what_would_fit(needed, bits, free)}"
        )
    if bits is None or (not as_stored and needed[None] <= free):
        return None
    if not as_stored:
        log(
            f"the weights stay in {bits} bits: in {_format(None, dtype)} they would need {decimal(needed[None])}, "
            f"and {device} has {decimal(free)} free; stories take longer"
        )
    return bits


def _what_would_fit(needed: Mapping[int | None, int], bits: int | None, free: int) -> str:
    for fewer in (8, 4):
        if fewer < (bits or 32) and needed[fewer] <= free:
            return (
                f"in {fewer} bits they need {decimal(needed[fewer])}: storyteller quantize --bits {fewer}, where there "
                "is room for all of them"
            )
    return "free some, or use another device or a smaller model"


def _format(bits: int | None, dtype: torch.dtype) -> str:
    return DTYPE_NAMES[dtype] if bits is None else f"{bits} bits"
