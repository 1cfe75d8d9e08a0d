"""Quantized weights in a checkpoint's files (see model/quantized.py), and reading all weights as fp32.

A quantized weight NAME is stored as two tensors instead of one: `int8/NAME` (I8) or `int4/NAME` (U8, two numbers per
byte), and `scale/NAME` (F32).
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from storyteller_ds.checkpoint.tensor_files import TensorEntry, TensorFiles
from storyteller_ds.errors import CheckpointError
from storyteller_ds.model.quantized import GROUP, Quantized, bits_of, dequantize, quantize, stored_shapes

_SCALE = "scale/"
_VALUES = {8: ("int8/", "I8"), 4: ("int4/", "U8")}
"""Bits -> name prefix and dtype."""
_ITEM_BYTES = {"F32": 4, "I8": 1, "U8": 1}


def stored_bytes(shapes: Mapping[str, tuple[int, ...]], bits: int | None) -> int:
    """Memory that the weights of a model need (bytes).

    Args:
        shapes: shapes of its parameters, by canonical name.
        bits: 8 or 4; None: fp32.
    """
    return sum(_ITEM_BYTES[entry.dtype] * math.prod(entry.shape) for entry in _entries(shapes, bits).values())


def _entries(shapes: Mapping[str, tuple[int, ...]], bits: int | None) -> dict[str, TensorEntry]:
    """The tensors in the files of a model; see stored_bytes."""
    quantized = bits_of(shapes, bits) if bits else {}
    entries = {}
    for name, shape in shapes.items():
        if of_name := quantized.get(name):
            prefix, dtype = _VALUES[of_name]
            values, scale = stored_shapes(shape, of_name)
            entries[prefix + name], entries[_SCALE + name] = TensorEntry(dtype, values), TensorEntry("F32", scale)
        else:
            entries[name] = TensorEntry("F32", shape)
    return entries


def quantized_tensors(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """The tensors to write for weights given by canonical name.

    Raises:
        CheckpointError: a weight is not finite; names it.
    """
    quantized = bits_of({name: tuple(weight.shape) for name, weight in weights.items()}, bits)
    tensors = {}
    for name, weight in weights.items():
        if of_name := quantized.get(name):
            try:
                tensors[_VALUES[of_name][0] + name], tensors[_SCALE + name] = quantize(weight, of_name)
            except ValueError as error:
                raise CheckpointError(f"{name} cannot be quantized: {error}; use another step") from None
        else:
            tensors[name] = weight
    return tensors


class Weights(Mapping[str, Tensor]):
    """The weights of a checkpoint by canonical name, in fp32 however they are stored.

    Args:
        files: weight files of the checkpoint.
        finite: refuse infinities and NaNs when they are read.

    Raises:
        CheckpointError: a quantized weight lacks a part, or its parts do not match.
    """

    def __init__(self, files: TensorFiles, finite: bool = True) -> None:
        self._files, self._finite = files, finite
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._bits: dict[str, int] = {}
        """Bits of each quantized weight."""
        for stored, entry in files.headers.items():
            bits = next((bits for bits, (prefix, _) in _VALUES.items() if stored.startswith(prefix)), None)
            if bits is not None:
                name = stored.removeprefix(_VALUES[bits][0])
                self._bits[name], self.shapes[name] = bits, self._shape(name, entry, bits)
            elif not stored.startswith(_SCALE):
                self.shapes[stored] = entry.shape

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, name: str) -> Tensor:
        stored = self.stored(name)
        return dequantize(stored) if isinstance(stored, Quantized) else stored

    @property
    def bits(self) -> int | None:
        """Number of bits that the model was quantized to; None: fp32."""
        return min(self._bits.values(), default=None)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that these are exactly the weights of a model, before any is loaded.

        Args:
            shapes: shapes of its parameters, by canonical name.

        Raises:
            CheckpointError: one is missing, is not expected, or has another shape or dtype; names it.
        """
        self._files.check(_entries(shapes, self.bits))

    def stored(self, name: str) -> Tensor | Quantized:
        """A weight as it is stored.

        Raises:
            CheckpointError: it has numbers that are not finite.
        """
        if name not in self._bits:
            return self._checked(name, name)
        values = self._files[_VALUES[self._bits[name]][0] + name]
        return Quantized(values, self._checked(_SCALE + name, name))

    def _checked(self, stored: str, name: str) -> Tensor:
        numbers = self._files[stored]
        if self._finite and not torch.isfinite(numbers).all():
            raise CheckpointError(
                f"checkpoint {self._files.folder}: {name} has numbers that are not finite; use another step"
            )
        return numbers

    def _shape(self, name: str, entry: TensorEntry, bits: int) -> tuple[int, ...]:
        *rows, columns = entry.shape or (0,)
        shape = (*rows, columns if bits == 8 else 2 * columns)
        parts = {entry, self._files.headers.get(_SCALE + name)}
        values, scale = stored_shapes(shape, bits)
        whole = len(shape) > 1 and (bits == 8 or shape[-1] % GROUP == 0)
        if not whole or parts != {TensorEntry(_VALUES[bits][1], values), TensorEntry("F32", scale)}:
            raise CheckpointError(f"{self._files.folder}: {name} is not a weight in {bits} bits; do not trust it")
        return shape
