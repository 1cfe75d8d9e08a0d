"""model.size: one name for width, depth, experts, batch and learning rates.

The rates are those that were tuned for 4 layers of 128 features, carried over to other widths so that an update changes
what a layer computes by as much. A matrix that Muon orthogonalizes and scales to the root mean square of AdamW's
updates has a spectral norm that grows with the root of its width, so its rate falls with that root; AdamW's updates
grow with the width itself (Yang et al. 2023, 2310.17813, sec. 4). The embedding, a look-up, keeps its rate for every
width; the output projection sums over the width. All rates fall with the root of the depth, as AdamW's do in depth-muP
(Yang et al. 2023, 2310.02244). That the best rate stays the best is measured (docs/experiments.md, "Learning rates
across sizes").

The larger batches of the large sizes are for GPUs. Their rates do not grow with the batch, since large models are
trained longer, for which lower rates are better (Bjorck et al. 2024, 2409.19913).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Size = Literal["1M", "4M", "14M", "43M", "120M", "500M"]


class _Shape(NamedTuple):
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    sequences: int
    """Per optimizer step."""


_SHAPES: Mapping[Size, _Shape] = {
    "1M": _Shape(3, 64, 2, 2, 128, 8),
    "4M": _Shape(4, 128, 4, 4, 256, 8),
    "14M": _Shape(6, 192, 6, 6, 384, 8),
    "43M": _Shape(8, 320, 5, 5, 640, 32),
    "120M": _Shape(10, 512, 8, 4, 896, 64),
    "500M": _Shape(12, 768, 12, 4, 2048, 128),
}
_TUNED_WIDTH, _TUNED_DEPTH = 128, 4
_TUNED_RATES = {"muon": 1e-2, "adamw": 3e-3}
_TUNED_EMBEDDING_RATIO, _TUNED_OUTPUT_RATIO = 10.0, 0.4


def settings_of(size: Size, optimizer: str) -> dict[str, Any]:
    """Field -> value of the settings that a size decides.

    Args:
        size: its name, the number of parameters with the vocabulary of quickstart.
        optimizer: optimizer.kind.
    """
    shape = _SHAPES[size]
    wider = shape.hidden_size / _TUNED_WIDTH
    slower = _of_width(shape.hidden_size, optimizer)
    return {
        "model.num_layers": shape.num_layers,
        "model.hidden_size": shape.hidden_size,
        "model.num_heads": shape.num_heads,
        "model.num_kv_heads": shape.num_kv_heads,
        "model.intermediate_size": shape.intermediate_size,
        "train.global_batch_size": shape.sequences,
        "optimizer.lr": _rounded(tuned_rate(shape.hidden_size, shape.num_layers, optimizer)),
        "optimizer.embedding_lr_ratio": _rounded(_TUNED_EMBEDDING_RATIO / slower),
        "optimizer.output_lr_ratio": _rounded(_TUNED_OUTPUT_RATIO / wider / slower),
    }


def tuned_rate(hidden_size: int, num_layers: int, optimizer: str) -> float:
    """The best measured learning rate, carried over to a width and a depth.

    Args:
        hidden_size: model.hidden_size.
        num_layers: model.num_layers.
        optimizer: optimizer.kind.
    """
    return _TUNED_RATES[optimizer] * _of_width(hidden_size, optimizer) / math.sqrt(num_layers / _TUNED_DEPTH)


def _of_width(hidden_size: int, optimizer: str) -> float:
    wider = hidden_size / _TUNED_WIDTH
    return 1 / math.sqrt(wider) if optimizer == "muon" else 1 / wider


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
