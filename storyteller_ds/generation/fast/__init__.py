"""A decode step on the CPU as one function of machine code, where numba is installed.

At batch 1 a step of a small model is a hundred products of a few microseconds each, and torch takes longer to begin one
than to compute it. step.py is the step, compiled once for all models; packed.py lays the weights out for it.
"""

import importlib.util
from collections.abc import Callable

import torch
from storyteller_kernels.dispatch import ASKED_FOR, backend

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.decode import Stepper
from storyteller_ds.meanwhile import meanwhile
from storyteller_ds.model.decoder import Decoder

_SLOW_S = 1.0


def fast_stepper(decoder: Decoder, run: RunConfig, log: Callable[[str], None]) -> Stepper | None:
    """The fast way for a decoder; None where there is none: another device or format, no numba, or
    STORYTELLER_KERNELS=reference.

    Args:
        decoder: in eval mode; see PackedDecoder.
        run: its config.
        log: gets a line if the step has to be compiled first.
    """
    weight = decoder.embedding.weight
    is_plain = weight.device.type == "cpu" and weight.dtype == (decoder.dtype or weight.dtype) == torch.float32
    if not is_plain or backend() is ASKED_FOR or importlib.util.find_spec("numba") is None:
        return None
    with meanwhile(lambda: log("compiling the decoder for this machine; later starts will not need to"), _SLOW_S):
        from storyteller_ds.generation.fast.packed import PackedDecoder

        stepper = PackedDecoder(decoder, run)
        stepper.begin([0], 2)
        stepper.step(0)
    return stepper
