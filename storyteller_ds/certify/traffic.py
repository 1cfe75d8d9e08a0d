"""Bytes that ranks exchange for their experts: counted in torch's all-to-all, and computed from the routing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from storyteller_ds.config.run import RunConfig


class Traffic:
    """What one rank has passed to torch's all-to-all, including tokens that stay on their own rank."""

    sent_bytes = 0
    """Activations, their gradients, and the counts that announce them."""


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count every all-to-all of this process inside the block: DeepSpeed calls the first function, we the second."""
    traffic = Traffic()
    collectives: Any = torch.ops._c10d_functional
    filling, functional = dist.all_to_all_single, collectives.all_to_all_single

    def count_filling(output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002  # torch's name
        traffic.sent_bytes += input.nbytes
        return filling(output, input, *args, **kwargs)

    def count_functional(input: Tensor, *args: Any) -> Tensor:  # noqa: A002  # torch's name
        traffic.sent_bytes += input.nbytes
        result: Tensor = functional(input, *args)
        return result

    dist.all_to_all_single = count_filling
    collectives.all_to_all_single = count_functional
    try:
        yield traffic
    finally:
        dist.all_to_all_single = filling
        collectives.all_to_all_single = functional


def routed_bytes(run: RunConfig, steps: int) -> int:
    """Bytes that dropless top-k routing has to move in `steps` steps of training, over all ranks.

    tokens * K choices * D features * bytes per element, to the experts and back, forward and backward, in every MoE
    layer. Computed from the run config alone, so it is independent of the exchange that it judges.

    Args:
        run: its precision.dtype is not auto.
        steps: optimizer steps.
    """
    tokens = steps * run.train.global_batch_size * run.data.sequence_length
    width = run.model.hidden_size * _BYTES[run.precision.dtype]
    return tokens * run.moe.top_k * width * 2 * 2 * run.moe_layers


_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
