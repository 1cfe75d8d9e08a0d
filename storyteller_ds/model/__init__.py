"""The network: decoder, mixture-of-experts (MoE) layers, loss, exact counts."""

from storyteller_ds.model.counts import count_parameters, flops_per_token
from storyteller_ds.model.decoder import Decoder

__all__ = ["Decoder", "count_parameters", "flops_per_token"]
