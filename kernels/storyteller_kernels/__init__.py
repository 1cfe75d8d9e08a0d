"""The operations of a mixture-of-experts (MoE) layer, each with a plain torch reference beside it.

Shapes are written behind the names: T tokens, D model width, E experts, K choices a token,
N = T * K rows (routed tokens: a token once for each of its experts), I expert width.
"""

from storyteller_kernels.cross_entropy import linear_cross_entropy
from storyteller_kernels.expert_mlp import Activation, activate, expert_mlp, expert_mlp_of_tokens
from storyteller_kernels.linear import linear
from storyteller_kernels.permute import combine, permute
from storyteller_kernels.rms_norm import add_rms_norm, rms_norm
from storyteller_kernels.routing import Routing, route

__all__ = [
    "Activation",
    "Routing",
    "activate",
    "add_rms_norm",
    "combine",
    "expert_mlp",
    "expert_mlp_of_tokens",
    "linear",
    "linear_cross_entropy",
    "permute",
    "rms_norm",
    "route",
]
