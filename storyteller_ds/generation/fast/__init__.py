"""Decoder steps on the CPU as one compiled function, if numba is installed.

At batch size 1, a step of a small model is a hundred matrix products of a few microseconds each, and torch takes longer
to launch one than to compute it. step.py is the step, compiled once for all models; weights.py lays out the weights for
it, packed.py holds the texts, and team.py the threads.
"""

import importlib.util
from collections.abc import Callable
from functools import cache

import torch
from storyteller_kernels.dispatch import ASKED_FOR, backend

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.stepper import Stepper
from storyteller_ds.meanwhile import meanwhile
from storyteller_ds.model.decoder import Decoder

_SLOW_S = 3.0
"""Longer than it takes to load the compiled code, unless other programs use the cores."""


def is_fast(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the compiled step can be used: on the CPU, in fp32, with numba, unless STORYTELLER_KERNELS=reference."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and backend() is not ASKED_FOR
        and importlib.util.find_spec("numba") is not None
    )


def fast_stepper(decoder: Decoder, run: RunConfig, log: Callable[[str], None]) -> Stepper:
    """The compiled stepper for a decoder, for which is_fast must hold.

    Args:
        decoder: see PackedDecoder.
        run: its config.
        log: gets a line if the step has to be compiled first.
    """
    once = cache(lambda: log("loading the decoder's machine code; the first time on a machine it is compiled"))
    with meanwhile(once, _SLOW_S):
        from storyteller_ds.generation.fast.packed import PackedDecoder

        stepper = PackedDecoder(decoder, run)
        stepper.begin([0], 2)
        stepper.step(0)
    return stepper
