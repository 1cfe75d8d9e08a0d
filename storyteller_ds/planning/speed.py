"""Roofline estimate of a step's time: matrix products, other reads and writes, and messages, one after another.

It assumes that nothing overlaps, that products run at PRODUCTS of the published rate (or at the measured one of this
machine), and copies at COPIES of the memory's bandwidth.
"""

from dataclasses import dataclass
from typing import Any

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.model.counts import flops_per_token
from storyteller_ds.planning.activations import Activations
from storyteller_ds.planning.devices import Device
from storyteller_ds.planning.messages import COLLECTIVES, Messages

PRODUCTS, COPIES, LINKS = 0.7, 0.85, 0.8
"""Assumed fractions of published rates that large products, copies and messages reach. Measured rates count in full."""
ASSUMPTIONS = (
    f"products at {PRODUCTS:.0%} of the published rate, copies at {COPIES:.0%}, messages at {LINKS:.0%} "
    "(measured rates: in full); nothing overlaps; rings without latency; expert loads balanced; every activation "
    "that is kept is written and read five times in all; nothing for launches of "
    "kernels, which small models on a card wait for most; no validation, samples or checkpoints"
)
_PASSES_OVER_ACTIVATIONS = 5
OFFLOADS = {"cpu": 25e9, "nvme": 3e9}
"""Assumed bandwidth between a GPU and its offloaded optimizer state [byte/s]: a PCI Express 4 bus, a fast disk."""
_NUMBERS_OF_AN_UPDATE = 7
"""AdamW reads weight, gradient and two moments, and writes three of them."""


@dataclass(frozen=True)
class Speed:
    """Speed of one optimizer step of all ranks."""

    products_s: float
    copies_s: float
    messages_s: float
    mfu: float
    """The model's arithmetic divided by what all devices could do in that time at their published or measured rate."""
    tokens: int
    """Tokens of a step."""

    @property
    def step_s(self) -> float:
        """Time of a step: the sum of the three."""
        return self.products_s + self.copies_s + self.messages_s

    @property
    def tokens_per_s(self) -> float:
        """Of all ranks together."""
        return self.tokens / self.step_s

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "step_s": self.step_s,
            "products_s": self.products_s,
            "copies_s": self.copies_s,
            "messages_s": self.messages_s,
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.mfu,
        }


def speed_of(
    run: RunConfig,
    plan: ParallelPlan,
    device: Device,
    dtype: str,
    activations: Activations,
    messages: Messages,
    updated: int,
    per_machine: int,
    offloads_to: str | None,
) -> Speed:
    """The time of a step.

    Args:
        run: the run config.
        plan: shares of the batch.
        device: the device of every rank.
        dtype: number format of the matrix products.
        activations: of a micro-batch.
        messages: of a step.
        updated: number of elements that a rank's optimizer updates.
        per_machine: ranks per machine.
        offloads_to: where the optimizer state is, if not on the device: cpu or nvme.
    """
    rate = device.rates.get(dtype, device.rates["fp32"])  # a format that the device has no arithmetic for is emulated
    tokens = run.train.global_batch_size * run.data.sequence_length
    flops = flops_per_token(run) * tokens / plan.world_size
    again = {"none": 1.0, "selective": 1.0, "block": 4 / 3}[run.model.activation_checkpointing]
    products_s = flops * again / (rate * (1 if device.is_measured else PRODUCTS))
    kept = sum(activations.saved(block) for block in range(run.model.num_layers))
    update = _NUMBERS_OF_AN_UPDATE * 4 * updated
    moved = _PASSES_OVER_ACTIVATIONS * kept * plan.accumulation_steps + (0 if offloads_to else update)
    copies_s = moved / (device.copies * (1 if device.is_measured else COPIES))
    copies_s += update / OFFLOADS[offloads_to] if offloads_to else 0.0
    link = 1 if device.is_measured else LINKS
    messages_s = 0.0
    for name in COLLECTIVES:
        reach = device.link if messages.groups[name] <= per_machine else device.network
        messages_s += messages.on_the_wire(name) / (reach * link)
    total = products_s + copies_s + messages_s
    return Speed(products_s, copies_s, messages_s, flops / rate / total, tokens)
