"""The interface of an engine: what the training loop needs of it."""

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
    """How the router of a layer behaved in an optimizer step, over all ranks; or those of all layers.

    Of all layers: the mean over layers, and the sum of dead_experts.
    """

    expert_load: list[float]
    """[E] part of the routed tokens that each expert got; they sum to 1."""
    expert_load_cv: float
    """Standard deviation of a layer's loads over their mean; 0 is perfect balance."""
    router_entropy: float
    """Mean entropy of the router's distribution (nats); log E is undecided."""
    dead_experts: int
    """Experts that got no token."""
    balance_loss: float
    """Balance loss before its coefficient; 1 is perfect balance."""
    z_loss: float
    """Router z-loss before its coefficient."""
    expert_load_max_over_mean: float
    """The largest load over the mean one; 1 is perfect balance, E is one expert that gets everything."""
    router_margin: float
    """Mean over tokens of the probability of the best expert less that of the second-best; 0 is undecided."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, the same on every rank."""

    loss: float
    """Mean negative log-likelihood of the global batch (nats per token), router losses not included."""
    grad_norm: float
    """Norm of the whole gradient before clipping; undefined if the step was skipped."""
    router: RouterMetrics | None
    """Of all layers; None for a dense model; on a GPU also for the steps before the one whose record is logged."""
    skipped: bool = False
    """No weight and no moment was changed, on no rank: the scaled gradient of fp16 overflowed, or see non_finite."""
    non_finite: Literal["loss", "gradient"] | None = None
    """What of a skipped step was not finite on some rank, where a lower loss scale would not fix it."""
    router_layers: Sequence[RouterMetrics] = ()
    """Of each MoE layer, where `router` is not None."""
    part_norms: Mapping[str, float] = field(default_factory=dict)
    """Norm of the gradient of each part of the model (gradient_norm.PARTS); empty where the engine has none, and on a
    GPU for the steps before the one whose record is logged."""
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Part of the step (forward, backward, optimizer) -> what it took on this rank [s]; see StepClock."""


class PendingStep(NamedTuple):
    """An optimizer step that a GPU may still be computing: nobody has waited for what it came to (step.finished)."""

    figures: Tensor
    """[3] fp64: loss, norm of the gradient, and the number of a verdict (step.VERDICTS)."""
    stats: Sequence[MicroBatchStats]
    """Of its accumulation steps."""
    gradient: SquaredGradient | None = None
    """By parts; None where the engine does not have it."""
    clock: StepClock | None = None


class LossScale(NamedTuple):
    """What fp16 multiplies the loss by, so that small gradients do not vanish."""

    scale: float
    good_steps: int
    """Steps without overflow since the scale last changed; after enough of them it doubles."""


STATE_BYTES = 4
"""Of each number of the training state: fp32."""


class StateTensor(NamedTuple):
    """One canonical tensor of the training state, whole, fp32, on the CPU."""

    kind: str
    """One of STATE_KINDS."""
    name: str
    """Canonical parameter name."""
    tensor: Tensor


Owner = Callable[[int, int | None], int]
"""Decides which rank is to have a tensor of the training state; must decide the same on every rank.

Takes the size of the tensor (bytes) and the one rank that has all of it, which it must then return (None: any will do).
"""


class Engine(Protocol):
    """Holds model and optimizer. All methods are called by every rank, in the same order."""

    world: World
    device: torch.device
    decoder: Decoder
    """For inference during training; a forward pass needs every rank."""
    passed_config: dict[str, Any] | None
    """The DeepSpeed JSON that DeepSpeed really got; None without DeepSpeed."""

    @property
    def loss_scale(self) -> LossScale | None:
        """None where the loss is not scaled, that is, except in fp16."""

    def begin_step(self, micro_batches: Sequence[MicroBatch], lr: float) -> PendingStep:
        """One optimizer step over this rank's part of the global batch, without waiting for a GPU to have done it.

        All ranks agree that loss and gradient are finite before any changes a weight; else the step is skipped.
        """

    def eval_step(self, batch: MicroBatch) -> Tensor:
        """[2] fp64: sum of nll (nats) and number of targets, over all ranks."""

    def named_state(self, owner: Owner | None = None) -> Iterator[StateTensor]:
        """Weights and moments, one whole tensor at a time, in the same order on every rank.

        Args:
            owner: gives each tensor to one rank only, which saves most of the messages; None: all get all.
        """

    def load_named_state(
        self, read: Callable[[str, str], Tensor], steps: int, updates: int, loss_scale: LossScale | None
    ) -> None:
        """Replace all weights and moments by read(kind, name), and the loss scale where there is one.

        `updates` is how often the optimizer has changed the weights: `steps` without the skipped ones.
        """

    def close(self) -> None:
        """Release what outlives this object; the process may build another engine afterwards."""
