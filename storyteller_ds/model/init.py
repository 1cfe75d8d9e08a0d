"""Initial weights: a function of the seed and the canonical name, and of nothing else.

Each parameter, and each single expert, has its own random stream. So a rank that holds experts 4 to 7
has exactly the weights that a single process has for them.
"""

import hashlib

import torch
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig
from storyteller_ds.model.canonical import placed_parameters

_RESIDUAL_SCALES = (1.0, 0.1)
_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj", "down_proj.weight")


@torch.no_grad()
def init_parameters(module: nn.Module, config: ModelConfig, seed: int, first_expert: int = 0) -> None:
    """Fill every parameter of a decoder in place.

    Weights are normal with standard deviation init_std, or init_std / sqrt(2 * num_layers) if they write into the
    residual stream (GPT-2, Radford et al. 2019, sec. 2.3). Gains are 1, biases 0; the noise weights of noisy gating
    and the gates of value embeddings start at 0, residual scales at 1 and 0.1, as in nanochat.

    Args:
        module: a Decoder, or a module that wraps one, on any device.
        config: for the standard deviation and the depth.
        seed: the run's seed.
        first_expert: canonical index of the first expert that this rank holds.
    """
    for name, parameter, first, _ in placed_parameters(module, first_expert):
        if name.endswith(("bias", "noise_weight", "value_embedding.gate.weight")):
            parameter.zero_()
        elif name.endswith("residual.scale"):
            parameter.copy_(torch.tensor(_RESIDUAL_SCALES))
        elif "norm." in name:
            parameter.fill_(1.0)
        else:
            std = config.init_std
            if name.endswith(_RESIDUAL_OUTPUTS):
                std /= (2 * config.num_layers) ** 0.5
            if first is None:
                parameter.copy_(normal(parameter.shape, std, seed, name))
            else:
                for i, expert in enumerate(parameter):
                    expert.copy_(normal(expert.shape, std, seed, f"{name}/{first + i}"))


def normal(shape: torch.Size, std: float, seed: int, name: str) -> Tensor:
    """Normal random numbers determined by seed and name, the same on every device and rank."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    # Always on the CPU: CUDA's generator gives different numbers.
    return torch.randn(shape, generator=generator) * std
