"""A decoder of names and shapes only, which takes no memory."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from storyteller_ds.config.run import RunConfig
from storyteller_ds.model.decoder import Decoder


def empty_decoder(run: RunConfig) -> Decoder:
    """A decoder on the meta device.

    Raises:
        RuntimeError, OverflowError, TypeError: of torch, about sizes beyond 64 bits.
    """
    with torch.device("meta"), _NoInitialWeights():
        return Decoder(run)


class _NoInitialWeights(TorchFunctionMode):
    """Skips torch.nn.init: there is nothing to fill, and torch would load its compiler for it, which takes a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
