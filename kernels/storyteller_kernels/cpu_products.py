"""Matrix products, each by the faster of the two libraries inside torch; there is a choice only for fp32 on the CPU.

torch passes a matrix product to its BLAS, which on x86 is MKL. MKL has AVX-512 code only for Intel's processors: others
get AVX2. oneDNN, which torch also contains, uses whatever the processor supports. So on a processor with AVX-512 that
is not Intel's, oneDNN is used and takes half the time (docs/experiments.md). Everywhere else it is BLAS, on a GPU
cuBLAS. Callers ask `row_blocks` or `window_around` for the library, and need not know which one it is.

torch reaches oneDNN's inner product through the operation that its compiler uses for linear layers. It is not public:
if a torch lacks it, BLAS is used. The gradient of a weight is computed as that of a convolution with a 1x1 kernel,
which is the same sum. Rows become pixels: [R, D] is a batch of IMAGES images of R / IMAGES pixels and D channels,
channels last, without a copy. (torch leaves 1x1 kernels to oneDNN only in batches of 16 or more, or with several
threads.)
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROCESSOR = Path("/proc/cpuinfo")
IMAGES = 16
MIN_ROWS = 128
MIN_WIDTH = 32
"""Narrower weights, such as a router's, waste most of a block of registers."""
MIN_MULTIPLICATIONS = 2**23
"""With fewer, the call costs more than it saves."""
LONGEST_SUM = 256
"""oneDNN adds one product after the other in fp32, so the rounding error grows with the square root of their number;
BLAS starts over every few hundred. Longer sums are split, and the parts added."""
ONEDNN_PRODUCTS: tuple[Any, ...] = (
    (torch.ops.mkldnn._linear_pointwise.default,) if hasattr(torch.ops.mkldnn, "_linear_pointwise") else ()
)
"""The operation that calls oneDNN's inner product; empty in a torch without it."""
BLOCK_BITS, WINDOW_BITS = 5, 6
"""Significant bits of the number of rows in a product: of rows that are cut to a block, and of rows to which neighbors
are added to fill a window."""


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 and this torch's BLAS does not use it."""
    try:
        processor = PROCESSOR.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "GenuineIntel" not in processor
        and bool(ONEDNN_PRODUCTS)
    )


class Products:
    """The three matrix products of a layer y = x W^T + b, by torch's own library: BLAS on a CPU, cuBLAS on a GPU."""

    def product(self, x_RD: Tensor, weight_HD: Tensor, bias_H: Tensor | None) -> Tensor:
        """x W^T + b: [R, H]."""
        return torch.mm(x_RD, weight_HD.t()) if bias_H is None else torch.addmm(bias_H, x_RD, weight_HD.t())

    def input_gradient(self, grad_RH: Tensor, weight_HD: Tensor) -> Tensor:
        """The gradient of x in `product`: g W, [R, D]."""
        return torch.mm(grad_RH, weight_HD)

    def add_weight_gradient(self, total_HD: Tensor, grad_RH: Tensor, x_RD: Tensor, first: bool) -> None:
        """Add the gradient of W in `product`, g^T x, to total; `first`: overwrite total instead."""
        torch.addmm(total_HD, grad_RH.t(), x_RD, beta=0 if first else 1, out=total_HD)


class _OneDNN(Products):
    """The same products by oneDNN."""

    def product(self, x_RD: Tensor, weight_HD: Tensor, bias_H: Tensor | None) -> Tensor:
        first, *others = _short_sums(weight_HD.shape[1])
        y_RH = _inner_product(x_RD[:, first], weight_HD[:, first].contiguous(), bias_H)
        for part in others:
            # Not in place: selective activation checkpointing keeps the results of products.
            y_RH = y_RH + _inner_product(x_RD[:, part], weight_HD[:, part].contiguous())
        return y_RH

    def input_gradient(self, grad_RH: Tensor, weight_HD: Tensor) -> Tensor:
        first, *others = _short_sums(len(weight_HD))
        grad_RD = _inner_product(grad_RH[:, first], weight_HD[first].t())
        for part in others:
            grad_RD += _inner_product(grad_RH[:, part], weight_HD[part].t())
        return grad_RD

    def add_weight_gradient(self, total_HD: Tensor, grad_RH: Tensor, x_RD: Tensor, first: bool) -> None:
        one, none = [1, 1], [0, 0]
        # A convolution's gradient takes the weight, but uses only its shape.
        tensors = (_pixels(grad_RH), _pixels(x_RD), torch.empty_like(total_HD)[:, :, None, None])
        settings = (None, one, none, one, False, none, 1, [False, True, False])
        part = torch.ops.aten.convolution_backward(*tensors, *settings)[1][:, :, 0, 0]
        total_HD.copy_(part) if first else total_HD.add_(part)


BLAS, ONEDNN = Products(), _OneDNN()


def row_blocks(rows: int, weight_HD: Tensor, most: int | None = None) -> Iterator[tuple[slice, Products]]:
    """Slices of the rows of a product with this weight, at least one, and the library for each; on a GPU torch's own.

    oneDNN compiles code for every new shape, in about a millisecond, and an expert hardly ever has the same number of
    rows twice. So it gets a block whose size has few significant bits, with 16 sizes between one power of two and the
    next; BLAS gets the rest, less than a sixteenth.

    Args:
        rows: number of rows.
        weight_HD: [H, D], in the dtype of the rows.
        most: most rows of a slice; None: all.
    """
    for start in range(0, rows or 1, most or rows or 1):
        end = min(start + most, rows) if most else rows
        count = end - start
        block = count - count % _step(count, BLOCK_BITS) if _suits_onednn(count, weight_HD) else 0
        if block:
            yield slice(start, start + block), ONEDNN
        if block < count or not rows:
            yield slice(start + block, end), BLAS


def window_around(rows: slice, total: int, weight_HD: Tensor) -> tuple[slice, Products]:
    """A window around some of `total` rows that one library multiplies at once, and the library.

    If a slice has neighbors on both sides, as an expert's has, it is cheaper to multiply a few of them as well and
    leave them out of the result than to leave the rest of the slice to BLAS, which would read the whole weight again.
    It adds at most a sixteenth of the rows, or 15.

    Args:
        rows: at least one.
        total: rows of the tensor that they are in.
        weight_HD: [H, D], in the dtype of the rows.
    """
    count = rows.stop - rows.start
    step = _step(count, WINDOW_BITS)
    size = -(-count // step) * step
    if size > total or not _suits_onednn(count, weight_HD):
        return rows, BLAS
    start = min(rows.start, total - size)
    return slice(start, start + size), ONEDNN


def _step(rows: int, significant_bits: int) -> int:
    """The number of which block and window sizes for this many rows are multiples."""
    return max(IMAGES, 1 << max(rows.bit_length() - significant_bits, 0))


def _suits_onednn(rows: int, weight_HD: Tensor) -> bool:
    return (
        weight_HD.device.type == "cpu"
        and weight_HD.dtype == torch.float32
        and rows >= MIN_ROWS
        and min(weight_HD.shape) >= MIN_WIDTH
        and rows * weight_HD.numel() >= MIN_MULTIPLICATIONS
        and onednn_is_faster()
    )


def _short_sums(length: int) -> list[slice]:
    """Split a sum over `length` products into the fewest parts that are no longer than LONGEST_SUM."""
    parts = -(-length // LONGEST_SUM)
    return [slice(i * length // parts, (i + 1) * length // parts) for i in range(parts)]


def _inner_product(x_RD: Tensor, weight_HD: Tensor, bias_H: Tensor | None = None) -> Tensor:
    """x W^T + b: [R, H]; parts of rows are copied, because oneDNN would compile for every stride."""
    y_RH: Tensor = ONEDNN_PRODUCTS[0](x_RD.contiguous(), weight_HD, bias_H, "none", [], "")
    return y_RH


def _pixels(x_RD: Tensor) -> Tensor:
    """[R, D] as images: [IMAGES, D, R / IMAGES, 1]."""
    return x_RD.view(IMAGES, -1, 1, x_RD.shape[1]).permute(0, 3, 1, 2)


def joined(parts: Iterable[Tensor]) -> Tensor:
    """The rows of all parts; copied only if there are several."""
    first, *others = parts
    return torch.cat([first, *others]) if others else first
