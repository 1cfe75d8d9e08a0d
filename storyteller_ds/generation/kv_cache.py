"""Keys and values of earlier positions, so that generation computes each position once."""

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig


class KVCache:
    """Keys and values of one layer, in memory that grows with them; see attention.LayerCache."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._k = torch.empty(shape, dtype=dtype, device=device)
        self._v = torch.empty(shape, dtype=dtype, device=device)
        self._length = 0

    def extend(self, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new positions; return all so far, [B, H, S_all, D]."""
        start, self._length = self._length, self._length + k_BHSD.shape[2]
        if self._length > self._k.shape[2]:
            self._k, self._v = self._grown(self._k, start), self._grown(self._v, start)
        self._k[:, :, start : self._length] = k_BHSD
        self._v[:, :, start : self._length] = v_BHSD
        return self._k[:, :, : self._length], self._v[:, :, : self._length]

    def keep(self, row_B: Tensor) -> None:
        """Forget all texts of the batch except these, [B] int64."""
        self._k, self._v = self._k[row_B], self._v[row_B]

    def _grown(self, old: Tensor, filled: int) -> Tensor:
        """Twice the memory, or as much as the new positions need, with the `filled` positions so far."""
        shape = list(old.shape)
        shape[2] = max(self._length, 2 * shape[2])
        new = old.new_empty(shape)
        new[:, :, :filled] = old[:, :, :filled]
        return new


def make_caches(
    run: RunConfig, batch_size: int, length: int, dtype: torch.dtype, device: torch.device
) -> list[KVCache]:
    """One cache per block, with room for `length` positions before it has to grow."""
    shape = (batch_size, run.model.kv_heads, length, run.model.head_dim)
    return [KVCache(shape, dtype, device) for _ in range(run.model.num_layers)]
