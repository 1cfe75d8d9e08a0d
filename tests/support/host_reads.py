"""Counts, on a CPU, the operations that would make the host wait for a GPU."""

from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_READS = {
    _aten._local_scalar_dense.default,
    _aten.bincount.default,
    _aten.equal.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
    _aten._unique2.default,
}
"""Reads of values, and shapes that depend on values. bincount reads the largest value even with minlength."""
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}


class HostReads:
    """Counts such operations in its context, in forward and backward passes, as `number`."""

    def __init__(self) -> None:
        self.number = 0
        self._modes = (_Operations(self), _Lists(self))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operations(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        by_mask = operation in _INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        sizeless = operation is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        self.reads.number += operation in _READS or by_mask or sizeless
        return operation(*args, **kwargs)


class _Lists(TorchFunctionMode):
    """Counts tolist, which does not go through the dispatcher on a CPU."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads.number += function is Tensor.tolist
        return function(*args, **(kwargs or {}))
