"""Causal self-attention with grouped key/value heads and rotary positions."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyteller_ds.config.model import ModelConfig
from storyteller_ds.model.linear import Embedding, Linear
from storyteller_ds.model.norm import RMSNorm


class LayerCache(Protocol):
    """Keys and values that one layer has seen so far, for generation."""

    def extend(self, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new positions; return all keys and values so far, [B, H, S_all, D]."""


class RotaryEmbedding(nn.Module):
    """Angles of the rotary position embedding (Su et al. 2021, sec. 3.2), with features paired as in Llama.

    Features i and i + D/2 of a head are rotated together by position * theta^(-2i/D).
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, position_S: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [..., S, D], for the int64 positions [..., S]."""
        # Computed here rather than kept in a buffer: casting the module to bf16 would ruin the angles.
        exponent = torch.arange(0, self.head_dim, 2, device=position_S.device, dtype=torch.float32) / self.head_dim
        angle_SH = position_S.float()[..., None] * self.theta**-exponent
        angle_SD = torch.cat([angle_SH, angle_SH], dim=-1)
        return angle_SD.cos(), angle_SD.sin()


def document_mask(position_BS: Tensor, start: int = 0) -> Tensor:
    """[B, 1, S, start + S] bool: each token attends to itself and to earlier tokens of its own document.

    Args:
        position_BS: [B, S] int64, positions within documents (MicroBatch); negative: padding before a document, which
            attends only to itself.
        start: number of earlier tokens, whose keys are in a cache.
    """
    place_T = torch.arange(start + position_BS.shape[1], device=position_BS.device)
    place_S = place_T[start:]
    first_BS1 = (place_S - position_BS.clamp(min=0))[..., None]
    return ((place_T >= first_BS1) & (place_T <= place_S[:, None]))[:, None]


def rotate(x_BHSD: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    """Rotate each feature pair of queries or keys by its angle."""
    first, second = x_BHSD.chunk(2, dim=-1)
    rotated = x_BHSD * cos_SD + torch.cat([-second, first], dim=-1) * sin_SD
    return rotated.to(x_BHSD.dtype)


class ValueEmbedding(nn.Module):
    """A vector per token, added to attention's values and scaled by a gate per head: 2 sigmoid(W x[:GATE_INPUTS]).

    As in nanochat; every position that attends to a token can still read which token it is.
    """

    GATE_INPUTS = 32
    """Features of the residual stream that the gate sees."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.inputs = min(self.GATE_INPUTS, config.hidden_size)
        self.embedding = Embedding(vocab_size, config.kv_heads * config.head_dim)
        self.gate = Linear(self.inputs, config.kv_heads, bias=False)

    def forward(self, token_BS: Tensor, x_BSD: Tensor) -> Tensor:
        """[B, S] int64 tokens, and the normalized residual stream [B, S, D], to [B, H, S, head size]."""
        value_BSHD = self.embedding(token_BS).to(x_BSD.dtype).unflatten(-1, (-1, self.head_dim))
        gate_BSH = 2 * torch.sigmoid(self.gate(x_BSD[..., : self.inputs]))
        gated_BHSD: Tensor = (gate_BSH[..., None] * value_BSHD).transpose(1, 2)
        return gated_BHSD


def lacks_grouped_kernel(q_BHSD: Tensor, mask_BHSS: Tensor | None) -> bool:
    """Whether torch would use the kernel that stores all probabilities [B, H, S, S] for shared key/value heads.

    On CUDA only flash attention supports shared heads, and it supports neither masks nor fp32. If every query head has
    its own key/value head, the memory-efficient kernel supports both.
    """
    return q_BHSD.is_cuda and (mask_BHSS is not None or q_BHSD.dtype == torch.float32)


class Attention(nn.Module):
    """Multi-head causal attention; several query heads share a key/value head (GQA, Ainslie et al. 2023).

    Args:
        config: sizes and options.
        value_vocabulary: number of tokens that have a value embedding; 0: no value embedding.
    """

    def __init__(self, config: ModelConfig, value_vocabulary: int = 0) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        kv_size = config.kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=config.bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=config.bias)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.value_embedding = ValueEmbedding(config, value_vocabulary) if value_vocabulary else None
        self.is_grouped = config.kv_heads != config.num_heads

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None = None,
        mask_BHSS: Tensor | None = None,
        token_BS: Tensor | None = None,
    ) -> Tensor:
        """[B, S, D] to [B, S, D].

        Args:
            x_BSD: normalized residual stream.
            rotary: cosines and sines of RotaryEmbedding, which broadcast over the heads; None: no rotation.
            cache: if given, the S new positions also attend to all earlier ones.
            mask_BHSS: [B, 1, S, S_all] bool, see document_mask; None: causal over all positions.
            token_BS: [B, S] int64, for the value embedding.
        """
        q_BHSD, k_BHSD, v_BHSD = (
            proj(x_BSD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.value_embedding is not None:
            v_BHSD = v_BHSD + self.value_embedding(token_BS, x_BSD)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHSD, k_BHSD = self.q_norm(q_BHSD), self.k_norm(k_BHSD)
        if rotary is not None:
            q_BHSD, k_BHSD = rotate(q_BHSD, *rotary), rotate(k_BHSD, *rotary)
        if cache is not None:
            k_BHSD, v_BHSD = cache.extend(k_BHSD, v_BHSD)
        new, total = q_BHSD.shape[2], k_BHSD.shape[2]
        if mask_BHSS is None and 1 < new < total:
            mask_BHSS = torch.ones(new, total, dtype=torch.bool, device=x_BSD.device).tril(total - new)
        is_grouped = self.is_grouped
        if is_grouped and lacks_grouped_kernel(q_BHSD, mask_BHSS):
            each = q_BHSD.shape[1] // k_BHSD.shape[1]
            k_BHSD, v_BHSD = k_BHSD.repeat_interleave(each, dim=1), v_BHSD.repeat_interleave(each, dim=1)
            is_grouped = False
        out_BHSD = F.scaled_dot_product_attention(
            q_BHSD,
            k_BHSD,
            v_BHSD,
            attn_mask=mask_BHSS,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask_BHSS is None and new == total,
            enable_gqa=is_grouped,
        )
        out_BSD: Tensor = self.o_proj(out_BHSD.transpose(1, 2).flatten(2))
        return out_BSD
