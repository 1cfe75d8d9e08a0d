"""A model without some of its experts, and what that costs.

The router chooses among the experts that are left: a token that would go to a missing one goes to its next best, and
the gate weights are renormalized. A model whose routers and stacks have had these experts cut out (prune.py) computes
the same.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from storyteller_kernels import Routing, route
from torch import Tensor, nn

from storyteller_ds.atlas.routing import moe_layer
from storyteller_ds.atlas.sample import Sample
from storyteller_ds.evaluation.interval import Estimate
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.moe.router import Router

Dropped = Mapping[int, Sequence[int]]
"""Block number -> its experts that are missing."""
_NEVER = -1e30
"""Added to a logit: the probability becomes exactly 0, without any infinite number."""


class KnockedOut(NamedTuple):
    """A model without some of its experts."""

    dropped: Dropped
    cost: Estimate
    """Bits per byte lost without them."""


class _WithoutExperts(nn.Module):
    """A router that never chooses some experts."""

    def __init__(self, router: Router, missing: Sequence[int]) -> None:
        super().__init__()
        self.router = router
        self._missing = list(missing)

    def forward(self, x_TD: Tensor) -> Routing:
        never_TE = x_TD.new_zeros(len(x_TD), len(self.router.weight), dtype=torch.float32)
        never_TE[:, self._missing] = _NEVER
        return route(x_TD, self.router.weight.to(x_TD.dtype), self.router.top_k, never_TE)


@contextlib.contextmanager
def without(decoder: Decoder, dropped: Dropped) -> Iterator[None]:
    """Inside the block, the decoder does without these experts. At least one must be left in each layer."""
    layers = {block: moe_layer(decoder, block) for block in dropped}
    routers = {block: layer.router for block, layer in layers.items()}
    try:
        for block, missing in dropped.items():
            layers[block].add_module("router", _WithoutExperts(routers[block], missing))
        yield
    finally:
        for block, router in routers.items():
            layers[block].add_module("router", router)


def knock_out(
    decoder: Decoder,
    sample: Sample,
    each: Sequence[Dropped],
    nll_T: NDArray[np.float64],
    device: torch.device,
    log: Callable[[str], None],
) -> list[KnockedOut]:
    """Measure the cost of doing without experts, with one forward pass over the sample for each set of experts.

    Args:
        decoder: in eval mode, on the device.
        sample: what the cost is measured on.
        each: the sets of experts to leave out, one per measurement.
        nll_T: negative log-likelihoods of the whole model on that sample.
        device: the decoder's device.
        log: gets a line from time to time, with the time left.
    """
    found: list[KnockedOut] = []
    began = time.monotonic()

    def progress() -> str:
        left = (time.monotonic() - began) / max(1, len(found)) * (len(each) - len(found))
        after = f", {left / 60:.1f} minutes left" if found else ""
        return f"doing without experts: {len(found)} of {len(each)} measurements{after}"

    with meanwhile(lambda: log(progress()), LINE_EVERY_S):
        for dropped in each:
            with without(decoder, dropped):
                more_T = sample.nll(decoder, device) - nll_T
            found.append(KnockedOut(dropped, sample.bits_per_byte(more_T)))
    return found


def one_by_one(blocks: Sequence[int], num_experts: int) -> list[Dropped]:
    """Every expert of these blocks, left out on its own."""
    return [{block: (expert,)} for block in blocks for expert in range(num_experts)]


def cheapest(costs: Sequence[KnockedOut], number: int) -> tuple[dict[int, tuple[int, ...]], float]:
    """The experts of each block that cost least on their own, and the sum of their costs.

    That the costs add up is a guess: experts that do the same thing are cheap one by one, but costly together.

    Args:
        costs: the cost of leaving out each expert on its own.
        number: how many experts of each block.
    """
    of_block: dict[int, list[tuple[float, int]]] = {}
    for each in costs:
        ((block, (expert,)),) = each.dropped.items()
        of_block.setdefault(block, []).append((each.cost.value, expert))
    chosen = {block: sorted(experts)[:number] for block, experts in of_block.items()}
    dropped = {block: tuple(sorted(expert for _, expert in experts)) for block, experts in chosen.items()}
    return dropped, sum(cost for experts in chosen.values() for cost, _ in experts)
