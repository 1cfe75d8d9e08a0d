"""Steps of the decoder on the CPU as one function of machine code, where numba is installed.

At batch 1 a step of a small model is a hundred products of a few microseconds each, and torch takes longer to begin one
than to compute it. step.py is the step, compiled once for all models; weights.py lays the
weights out for it, packed.py keeps texts, and team.py the threads.
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
"""Longer than it takes to load what is compiled, unless others use the cores."""


def is_fast(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether there is a fast way: on the CPU, in fp32, with numba, and without STORYTELLER_KERNELS=reference."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and backend() is not ASKED_FOR
        and importlib.util.find_spec("numba") is not None
    )


def fast_stepper(decoder: Decoder, run: RunConfig, log: Callable[[str], None]) -> Stepper:
    """The fast way for a decoder, where is_fast.

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
