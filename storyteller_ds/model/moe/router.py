"""The router: which experts a token goes to, and the gate weight of each.

The rule is Mixtral's (Jiang et al. 2024, sec. 2.1), computed in fp32 from x and W in the residual stream's dtype:

    logits = x W^T, plus noise in training with moe.noisy_gating (Shazeer et al. 2017, eq. 4)
    p      = softmax(logits) over all experts
    chosen = the moe.top_k largest of p; ties go to the lower index
    weight = p of the chosen, divided by their sum

No token is dropped and there is no capacity, so a token's result depends on no other token. `route` of
storyteller_kernels computes it: kernels/storyteller_kernels/routing/reference.py is the definition in plain torch, and
kernel.py beside it is the Triton kernel. The output of the layer is the sum over a token's experts of gate weight times
expert output (`combine`, in local.py).
"""

import torch
from storyteller_kernels import Routing, route
from torch import Tensor, nn
from torch.nn import functional as F

from storyteller_ds.config.model import ModelConfig, MoEConfig


class Router(nn.Module):
    """Holds the router's weight W [E, D]; logits and everything after them are fp32 for every dtype of x."""

    def __init__(self, model: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.top_k = moe.top_k
        self.weight = nn.Parameter(torch.empty(moe.num_experts, model.hidden_size))
        if moe.noisy_gating:
            self.noise_weight = nn.Parameter(torch.empty(moe.num_experts, model.hidden_size))
        else:
            self.register_parameter("noise_weight", None)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route the tokens [T, D]."""
        noise_TE = None
        if self.noise_weight is not None and self.training:
            scale_TE = F.softplus(x_TD.float() @ self.noise_weight.to(x_TD.dtype).float().t())
            noise_TE = torch.randn_like(scale_TE) * scale_TE
        return route(x_TD, self.weight.to(x_TD.dtype), self.top_k, noise_TE)
