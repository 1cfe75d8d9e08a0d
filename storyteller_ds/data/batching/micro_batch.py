"""The sequences of one forward pass."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Target id of a position that does not count."""


class MicroBatch(NamedTuple):
    """One rank's sequences of one forward pass."""

    token_BS: Tensor
    """[B, S] int64."""
    target_BS: Tensor
    """[B, S] int64: the next token of each, IGNORED where there is none."""
    position_BS: Tensor | None = None
    """[B, S] int64: the position of each token in its document, or in the sequence if the document begins before it;
    None: documents are not separated."""

    def pinned(self) -> "MicroBatch":
        """The same in pinned memory, which a GPU copies from while the host goes on."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device."""
        if device.type == "cuda":
            # Tensors that are pinned already are not copied again.
            return self.pinned()._each(lambda tensor: tensor.to(device, non_blocking=True))
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        position_BS = None if self.position_BS is None else change(self.position_BS)
        return MicroBatch(change(self.token_BS), change(self.target_BS), position_BS)
