"""Makes ZeRO-1, 2 and 3 skip a step whose loss or gradient is not finite, in every number format.

The norm that DeepSpeed takes anyway is checked at every step, and it is infinite if the loss is not finite
(private.guarded_norm). No message and no pass over the gradients is added: the loss was summed over ranks with the
router's counts, and the norm by DeepSpeed, so that all ranks see the same.
"""

import math
from typing import Any, Literal

from storyteller_ds.engines.deepspeed import private
from storyteller_ds.engines.step import cause_of_skip


def finite_step(engine: Any, stage: int, loss: float) -> tuple[bool, Literal["loss", "gradient"] | None]:
    """DeepSpeed's optimizer step, or none; called by every rank after the last backward pass.

    Args:
        engine: DeepSpeed's, whose optimizer private.prepare_skipping has seen.
        stage: of ZeRO: 1, 2 or 3.
        loss: of the global batch, the same on every rank.

    Returns:
        Whether the step was skipped; and what was not finite, unless a lower loss scale fixes it.
    """
    can_fall = private.scale_can_fall(engine.optimizer)
    set_scale_back = private.remember_loss_scale(engine.optimizer)
    with private.guarded_norm(engine.optimizer, stage, math.isfinite(loss)):
        engine.step()
    if engine.was_step_applied():
        return False, None
    cause = cause_of_skip(loss, can_fall)
    if cause is not None:
        set_scale_back()  # the scale is not at fault
    return True, cause
