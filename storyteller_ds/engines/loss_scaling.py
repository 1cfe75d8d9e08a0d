"""Loss scaling for fp16, so that small gradients do not vanish (Micikevicius et al. 2018, sec. 3.2).

The rule is that of torch.amp.GradScaler and DeepSpeed: the scale is halved when a scaled gradient overflows, and
doubled after GROWTH_STEPS steps without overflow. It stays on the device, like the verdict on a step. It keeps its
value if the loss itself was not finite or if it cannot fall any further, since then the scale is not at fault.
"""

import torch
from torch import Tensor

from storyteller_ds.engines.base import LossScale
from storyteller_ds.engines.step import VERDICTS

FIRST, GROWTH_STEPS = 2.0**16, 1000
"""As in ds_configs/zero2_fp16.json."""
_DONE, _OVERFLOW = range(2)
assert VERDICTS[_DONE] == (False, None)
assert VERDICTS[_OVERFLOW] == (True, None)


class LossScaling:
    """The scale, [] fp32, and the number of good steps since it last changed, [] int64, on a device."""

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.tensor(FIRST, device=device)
        self.good_steps = torch.tensor(0, device=device)

    @torch.no_grad()
    def after(self, verdict: Tensor) -> None:
        """Adapt the scale to the verdict on a step (step.verdict)."""
        done, overflow = verdict == _DONE, verdict == _OVERFLOW
        good = torch.where(done, self.good_steps + 1, torch.where(overflow, 0, self.good_steps))
        grows = good == GROWTH_STEPS
        self.scale = torch.where(overflow, self.scale * 0.5, torch.where(grows, self.scale * 2.0, self.scale))
        self.good_steps = torch.where(grows, 0, good)

    def read(self) -> LossScale:
        """Read the scale for the record and the checkpoint; waits for the device."""
        return LossScale(float(self.scale), int(self.good_steps))

    def put_back(self, saved: LossScale) -> None:
        """Restore the scale from a checkpoint."""
        self.scale = torch.full_like(self.scale, saved.scale)
        self.good_steps = torch.full_like(self.good_steps, saved.good_steps)
