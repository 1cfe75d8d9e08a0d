"""The dense feed-forward layer."""

from storyteller_kernels import activate
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig
from storyteller_ds.model.linear import Linear


def up_width(config: ModelConfig) -> int:
    """Outputs of the first projection: gate and up together for swiglu."""
    return config.intermediate_size * (2 if config.activation == "swiglu" else 1)


class FeedForward(nn.Module):
    """down(act(up(x))); with swiglu, `gate_up_proj` stacks the gate above the up projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_up_proj = Linear(config.hidden_size, up_width(config), bias=config.bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, None]:
        """[B, S, D] to [B, S, D], and None where an MoE layer returns its router's statistics."""
        return self.down_proj(activate(self.gate_up_proj(x_BSD), self.activation)), None
