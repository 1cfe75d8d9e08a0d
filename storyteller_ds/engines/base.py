"""The interface of an engine, as the training loop uses it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.gradient_norm import SquaredGradient
from storyteller_ds.engines.step_clock import StepClock
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.loss import MicroBatchStats


@dataclass(frozen=True)
class RouterMetrics:
    """Metrics of one layer's router in an optimizer step, over all ranks; or of all layers together.

    For all layers: the mean over layers, but the sum of dead_experts.
    """

    expert_load: list[float]
    """[E] fraction of the routed tokens that each expert got; they sum to 1."""
    expert_load_cv: float
    """Standard deviation of a layer's loads divided by their mean; 0 is perfect balance."""
    router_entropy: float
    """Mean entropy of the router's distribution (nats); log E is undecided."""
    dead_experts: int
    """Number of experts that got no token."""
    balance_loss: float
    """Balance loss before its coefficient; 1 is perfect balance."""
    z_loss: float
    """Router z-loss before its coefficient."""
    expert_load_max_over_mean: float
    """The largest load divided by the mean; 1 is perfect balance, E means that one expert gets everything."""
    router_margin: float
    """Mean over tokens of the best expert's probability minus the second-best's; 0 is undecided."""


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step, the same on every rank."""

    loss: float
    """Mean negative log-likelihood of the global batch (nats per token), router losses not included."""
    grad_norm: float
    """Norm of the whole gradient before clipping; undefined if the step was skipped."""
    router: RouterMetrics | None
    """Metrics of all layers; None for a dense model and, on a GPU, for steps before the one whose record is logged."""
    skipped: bool = False
    """Whether no rank changed any weight or moment: the scaled fp16 gradient overflowed, or see non_finite."""
    non_finite: Literal["loss", "gradient"] | None = None
    """If the step was skipped and a lower loss scale would not help: what was not finite on some rank."""
    router_layers: Sequence[RouterMetrics] = ()
    """Metrics of each MoE layer, if `router` is not None."""
    part_norms: Mapping[str, float] = field(default_factory=dict)
    """Gradient norm of each part of the model (gradient_norm.PARTS); empty if the engine does not compute them and, on
    a GPU, for steps before the one whose record is logged."""
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Part of the step (forward, backward, optimizer) -> its duration on this rank [s]; see StepClock."""


class PendingStep(NamedTuple):
    """An optimizer step that a GPU may still be computing; step.finished waits for its result."""

    figures: Tensor
    """[3] fp64: loss, gradient norm, and index of the verdict in step.VERDICTS."""
    stats: Sequence[MicroBatchStats]
    """Statistics of its accumulation steps."""
    gradient: SquaredGradient | None = None
    """Squared gradient by parts; None if the engine does not compute it."""
    clock: StepClock | None = None


class LossScale(NamedTuple):
    """The factor by which the loss is multiplied in fp16, so that small gradients do not vanish."""

    scale: float
    good_steps: int
    """Steps without overflow since the scale last changed; after enough of them it doubles."""


STATE_BYTES = 4
"""Bytes per number of the training state, which is fp32."""


class StateTensor(NamedTuple):
    """One canonical tensor of the training state, whole, fp32, on the CPU."""

    kind: str
    """One of STATE_KINDS."""
    name: str
    """Canonical parameter name."""
    tensor: Tensor


Owner = Callable[[int, int | None], int]
"""Decides which rank gets a tensor of the training state; must decide the same on every rank.

Takes the size of the tensor (bytes) and the only rank that has all of it, which it must then return (None: any rank).
"""


class Engine(Protocol):
    """Holds model and optimizer; every rank calls all methods, in the same order."""

    world: World
    device: torch.device
    decoder: Decoder
    """For inference during training; a forward pass needs every rank."""
    passed_config: dict[str, Any] | None
    """The JSON that DeepSpeed actually got; None without DeepSpeed."""

    @property
    def loss_scale(self) -> LossScale | None:
        """The loss scale; None except in fp16, since the loss is not scaled otherwise."""

    def begin_step(self, micro_batches: Sequence[MicroBatch], lr: float) -> PendingStep:
        """Begin an optimizer step over this rank's part of the global batch, without waiting for a GPU to finish it.

        All ranks agree that loss and gradient are finite before any changes a weight; otherwise the step is skipped.
        """

    def eval_step(self, batch: MicroBatch) -> Tensor:
        """[2] fp64: sum of nll (nats) and number of targets, over all ranks."""

    def named_state(self, owner: Owner | None = None) -> Iterator[StateTensor]:
        """Weights and moments, one whole tensor at a time, in the same order on every rank.

        Args:
            owner: gives each tensor to one rank only, which saves most messages; None: every rank gets every tensor.
        """

    def load_named_state(
        self, read: Callable[[str, str], Tensor], steps: int, updates: int, loss_scale: LossScale | None
    ) -> None:
        """Replace all weights and moments by read(kind, name), and the loss scale if there is one.

        `updates` is how often the optimizer has changed the weights: `steps` minus the skipped ones.
        """

    def close(self) -> None:
        """Release resources that outlive this object; the process may build another engine afterwards."""
