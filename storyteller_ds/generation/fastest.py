"""The fastest available way to compute a decoder's logits, and the dtype to compute them in."""

from collections.abc import Callable
from typing import Literal

import torch
from storyteller_kernels.dispatch import backend

from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines.precision import run_dtype
from storyteller_ds.errors import UserError
from storyteller_ds.generation.fast import fast_stepper, is_fast
from storyteller_ds.generation.graph_stepper import GraphStepper
from storyteller_ds.generation.stepper import Stepper
from storyteller_ds.model.decoder import Decoder

Precision = Literal["auto", "fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def weights_dtype(run: RunConfig, device: torch.device, precision: Precision) -> torch.dtype:
    """The dtype of weights and matrix products; `auto`: on CUDA the dtype that the run is trained in there, else fp32.

    Raises:
        UserError: there is no such precision.
    """
    if precision == "auto":
        return run_dtype(run, device) if device.type == "cuda" else torch.float32
    if precision not in _DTYPES:
        raise UserError(f"precision {precision!r} is not known; use auto, {' or '.join(_DTYPES)}")
    return _DTYPES[precision]


def fastest_stepper(decoder: Decoder, run: RunConfig, log: Callable[[str], None]) -> Stepper | None:
    """The fastest Stepper for a decoder; None: nothing is faster than torch's operators one by one.

    Args:
        decoder: in eval mode, on its device.
        run: its config.
        log: gets a line if something has to be compiled first.
    """
    weight = decoder.embedding.weight
    if is_fast(weight.device, weight.dtype):
        return fast_stepper(decoder, run, log)
    # Without Triton the host loops over the experts by their token counts.
    if weight.device.type == "cuda" and (not run.moe_layers or backend().name == "triton"):
        return GraphStepper(decoder, run)
    return None
