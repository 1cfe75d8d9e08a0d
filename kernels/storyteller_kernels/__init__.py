"""The operations of a mixture-of-experts (MoE) layer, each with a plain torch reference beside it.

Names end in the shapes of their tensors: T tokens, D model width, E experts, K choices per token,
N = T * K rows (routed tokens: a token once for each of its experts), I expert width.
"""

import torch

from storyteller_kernels.cpu_products import ONEDNN_PRODUCTS
from storyteller_kernels.cross_entropy import capped, linear_cross_entropy
from storyteller_kernels.expert_mlp import Activation, activate, expert_mlp
from storyteller_kernels.linear import linear
from storyteller_kernels.permute import combine, permute
from storyteller_kernels.rms_norm import add_rms_norm, rms_norm
from storyteller_kernels.routing import Routing, counted, route

_aten, _ours = torch.ops.aten, torch.ops.storyteller
MATRIX_PRODUCTS = frozenset({
    _aten.mm.default,
    _aten.addmm.default,
    _aten._grouped_mm.default,
    _ours.swiglu_experts.default,
    _ours.grouped_product.default,
    *ONEDNN_PRODUCTS,
})  # fmt: skip
"""The products with weights (attention projections, router, experts) as torch's dispatcher sees them, for activation
checkpointing, which keeps their results.

Not bmm: without a fused attention kernel, it computes the [S, S] table of scores, which is most of the memory.
"""

__all__ = [
    "MATRIX_PRODUCTS",
    "Activation",
    "Routing",
    "activate",
    "add_rms_norm",
    "capped",
    "combine",
    "counted",
    "expert_mlp",
    "linear",
    "linear_cross_entropy",
    "permute",
    "rms_norm",
    "route",
]
