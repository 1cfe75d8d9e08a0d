"""Operators of a training step on a GPU, counted without one: python -m benchmarks.launches fast_train moe_model

The step runs on fake CUDA tensors, which have shapes and no numbers, so that every call goes the way it would go on a
card with Triton. Views are not counted. An operator is at least one launch; ours are one to five (route: 2, its
gradients: 2, rms_norm: 1, its gradient: 2, experts: 2, their gradients: 4 or 5, permute and combine: 1).
"""

import sys
from collections import Counter
from typing import Any
from unittest import mock

import torch
from storyteller_kernels import dispatch
from torch._subclasses.fake_tensor import FakeTensorMode

from storyteller_ds.bench.roofline import Operators
from storyteller_ds.config import load_config
from storyteller_ds.data.batches import MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines import single
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.model.decoder import Decoder

CUDA = torch.device("cuda", 0)
LENGTH = 256
"""Tokens of the one sequence, which change no count."""


class ByName(Operators):
    """Also keeps how often each operator was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.number
        result = super().__torch_dispatch__(operation, types, args, kwargs)
        self.calls[operation.name()] += self.number - before
        return result


def count(preset: str) -> ByName:
    """Of one eager step in bf16."""
    overrides = [
        "train.global_batch_size=1",
        f"data.sequence_length={LENGTH}",
        "precision.dtype=bf16",
        "train.compile=off",
    ]
    run = load_config(preset, overrides).run
    with (
        FakeTensorMode(),
        mock.patch.object(dispatch, "_chosen", return_value="triton"),
        mock.patch.object(single, "init_parameters"),
        mock.patch.object(Decoder, "to"),
        torch.device(CUDA),
    ):
        engine = SingleEngine(run, World(0, 0, 1, 1), CUDA)
        token = torch.zeros(1, LENGTH + 1, dtype=torch.int64, device="cpu")
        batch = MicroBatch(token[:, :-1].contiguous(), token[:, 1:].contiguous())
        with ByName() as found:
            engine.begin_step([batch], run.optimizer.lr)
    return found


if __name__ == "__main__":
    for preset in sys.argv[1:]:
        found = count(preset)
        most = ", ".join(f"{name} {number}" for name, number in found.calls.most_common(12))
        print(f"{preset}: {found.number:,} operators; {most}")
