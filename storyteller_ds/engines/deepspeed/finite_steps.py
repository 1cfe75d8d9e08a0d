"""Makes ZeRO-1, 2 and 3 skip a step whose loss or gradient is not finite, in every number format.

DeepSpeed 0.19.8 takes the norm of the averaged gradient over all ranks before it touches a weight. An infinite or
undefined one sends it down the path of fp16's overflow, which throws the gradients away and returns. But under
ZeRO-1 and 2 in bf16 it looks at the norm only if `bf16.check_grad_overflow` is set (the default), which also costs
another pass over the gradients, and else multiplies weights by NaN; and nobody looks at the loss. Here the norm
that is taken anyway is looked at always, and is infinite if the loss is not finite; bf16's extra pass is left out.
No message and no pass is added: the loss was summed over ranks with the router's counts, and the norm by
DeepSpeed, so that all ranks see the same.
"""

import math
from typing import Any, Literal

import torch

from storyteller_ds.engines.step import cause_of_skip
from storyteller_ds.errors import ConfigError


class FiniteSteps:
    """The guard of one ZeRO optimizer.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        stage: 1, 2 or 3.

    Raises:
        ConfigError: the DeepSpeed JSON turns the norm off.
    """

    def __init__(self, optimizer: Any, stage: int) -> None:
        self._optimizer = optimizer
        self._is_loss_finite = True
        # At the lowest scale DeepSpeed would raise an exception without a message for users; the loop counts.
        optimizer.loss_scaler.raise_error_at_min_scale = False
        self._always_checked = False
        if stage < 3:
            self._always_checked = optimizer.dtype == torch.float16
            if not optimizer.compute_grad_norm:
                raise ConfigError(
                    "without the gradient's norm nobody would see that it is not finite; remove "
                    "zero_optimization.compute_grad_norm from the DeepSpeed JSON"
                )
            optimizer.check_grad_overflow = self._always_checked
            self._norm = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = self._guarded_norm
        else:
            self._norms = optimizer._get_norm_groups
            optimizer._get_norm_groups = self._guarded_norms

    def step(self, engine: Any, loss: float) -> tuple[bool, Literal["loss", "gradient"] | None]:
        """DeepSpeed's optimizer step, or none; called by every rank after the last backward pass.

        Args:
            engine: DeepSpeed's engine.
            loss: of the global batch, the same on every rank.

        Returns:
            Whether the step was skipped; and what was not finite, unless a lower loss scale mends it.
        """
        scaler = self._optimizer.loss_scaler
        before = dict(vars(scaler))
        can_fall = scaler.dynamic and scaler.cur_scale > scaler.min_scale
        self._is_loss_finite = math.isfinite(loss)
        engine.step()
        self._optimizer.check_grad_overflow = self._always_checked
        if not self._optimizer.overflow:
            return False, None
        cause = cause_of_skip(loss, can_fall)
        if cause is not None:
            # The scale is not at fault.
            vars(scaler).update(before)
        return True, cause

    def _guarded_norm(self) -> torch.Tensor:
        """For ZeRO-1 and 2: the norm, and the order to look at it."""
        norm: torch.Tensor = self._norm()
        if not self._is_loss_finite:
            norm = torch.full_like(norm, math.inf)
        # Set only while it forbids the step: otherwise DeepSpeed would search all gradients beforehand, too.
        self._optimizer.check_grad_overflow = self._always_checked or not math.isfinite(norm)
        return norm

    def _guarded_norms(self) -> list[torch.Tensor]:
        """For ZeRO-3: the norms of the groups of parameters, of which it refuses all that are not finite."""
        norms: list[torch.Tensor] = self._norms()
        return norms if self._is_loss_finite else [torch.full_like(norm, math.inf) for norm in norms]
