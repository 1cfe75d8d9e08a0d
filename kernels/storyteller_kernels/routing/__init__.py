"""From token vectors to the experts that will process them."""

from torch import Tensor

from storyteller_kernels.dispatch import runs_on_triton
from storyteller_kernels.routing import operators, reference
from storyteller_kernels.routing.reference import Routing, counted

MAX_EXPERTS = 256
"""Most experts whose logits a Triton program holds in its registers; for more, the reference is used."""
MAX_ROWS = 2**31 - 1
"""Rows are counted in 32 bits."""


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None = None) -> Routing:
    """Choose the experts of each token; arguments and result as in `reference.route`."""
    floats = (x_TD, weight_ED) if noise_TE is None else (x_TD, weight_ED, noise_TE)
    (T, _), E = x_TD.shape, weight_ED.shape[0]
    suits = 0 < T * top_k <= MAX_ROWS and E <= MAX_EXPERTS and (noise_TE is None or noise_TE.shape == (T, E))
    if runs_on_triton(*floats) and suits:
        return operators.route(x_TD, weight_ED, top_k, noise_TE)
    return reference.route(x_TD, weight_ED, top_k, noise_TE)


__all__ = ["MAX_EXPERTS", "Routing", "counted", "route"]
