"""Bytes that ranks exchange for their experts: counted at the door, and known beforehand from the routing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from storyteller_ds.config.run import RunConfig


@dataclass
class Traffic:
    """What one rank has handed to `torch.distributed.all_to_all_single`.

    Rows that stay on their own rank are part of what is handed over, and so are counted.
    """

    payload_bytes: int = 0
    """Activations and their gradients: floating-point tensors."""
    message_bytes: int = 0
    """How many rows go where: integer tensors."""


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count every all-to-all of this process during the block, whoever calls it."""
    traffic = Traffic()
    original = dist.all_to_all_single

    def counting(output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002  # torch's name
        size = input.numel() * input.element_size()
        if input.is_floating_point():
            traffic.payload_bytes += size
        else:
            traffic.message_bytes += size
        return original(output, input, *args, **kwargs)

    dist.all_to_all_single = counting
    try:
        yield traffic
    finally:
        dist.all_to_all_single = original


def routed_bytes(run: RunConfig, steps: int) -> int:
    """Bytes that dropless top-k routing has to move in `steps` steps of training in fp32, over all ranks.

    tokens * K choices * D features * 4 bytes, to the experts and back, forward and backward, in every mixture
    layer. It follows from the run config alone, so it is independent of the exchange that it judges.
    """
    tokens = steps * run.train.global_batch_size * run.data.sequence_length
    layers = sum(run.moe.is_moe_layer(i) for i in range(run.model.num_layers))
    return tokens * run.moe.top_k * run.model.hidden_size * 4 * 2 * 2 * layers
