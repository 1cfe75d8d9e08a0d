"""The network: the decoder and its mixture-of-experts layers."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storyteller_ds.config.base import Section
from storyteller_ds.config.size import Size

_MOST_HEADS = 1024
"""That a message proposes."""


class ModelConfig(Section):
    """A decoder-only transformer. The defaults give Llama's block; other options give GPT-2's."""

    size: Size | None = None
    """Approximate number of parameters of the whole model: one setting for width, depth, experts, batch size and
    learning rates. Values set explicitly beside it or after it are kept."""
    hidden_size: int = Field(128, ge=1)
    """Width of the residual stream, D (features)."""
    num_layers: int = Field(4, ge=1, le=10_000)
    """Number of transformer blocks."""
    num_heads: int = Field(4, ge=1)
    """Number of query heads; must divide hidden_size."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Number of key/value heads (grouped-query attention); must divide num_heads; null: num_heads."""
    intermediate_size: int = Field(256, ge=1)
    """Width of the feed-forward layer, I (features); of one expert in an MoE layer."""
    context_length: int | None = Field(None, ge=1)
    """Longest sequence the model accepts (tokens); null: data.sequence_length."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalization before attention, before the feed-forward layer and before the output."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance in the normalization (squared activation units)."""
    position: Literal["rope", "learned"] = "rope"
    """Rotary embeddings (RoFormer, Su et al. 2021) or a learned table as in GPT-2."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary wavelengths (dimensionless)."""
    qk_norm: bool = False
    """Whether queries and keys are normalized per head before the rotation, as in Qwen3 (2505.09388); this allows
    higher learning rates."""
    activation: Literal["swiglu", "gelu", "relu", "relu2"] = "swiglu"
    """Non-linearity of the feed-forward layer; swiglu is gated and has a third projection, relu2 is the square of relu
    (Primer, 2109.08668)."""
    bias: bool = False
    """Whether linear layers and LayerNorm have a bias."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of zeroing an activation in training (embedding, attention, both residual branches)."""
    tie_embeddings: bool = True
    """Whether the output projection is the token embedding."""
    logit_softcap: float | None = Field(None, gt=0)
    """Bound c of the logits, which become c tanh(logits / c), as in Gemma 2 (2408.00118) (logit units); null: none."""
    value_embeddings: bool = False
    """Whether every second block, counted back from the last, adds an embedding of the token, times a gate, to the
    attention values, as in nanochat."""
    residual_scales: bool = False
    """Whether each block scales the residual stream and adds a multiple of the embedding to it, with two learned
    numbers, as in nanochat."""
    activation_checkpointing: Literal["none", "block", "selective"] = "none"
    """What the backward pass recomputes instead of keeping: nothing, whole blocks, or everything but matrix products
    and attention (selective). Saves memory, costs time, and changes no number."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights; residual outputs use init_std / sqrt(2 * num_layers)."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}; "
                f"choose one of {_divisors(self.hidden_size)}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; "
                f"choose one of {_divisors(self.num_heads)}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(
                f"rotary embeddings need an even head size, and hidden_size/num_heads is {self.head_dim}; "
                f"change num_heads or set position=learned"
            )
        return self

    def has_value_embedding(self, layer: int) -> bool:
        """Whether block number `layer`, counted from 0, has a value embedding."""
        return self.value_embeddings and (self.num_layers - 1 - layer) % 2 == 0

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, with the default filled in."""
        return self.num_kv_heads or self.num_heads


class MoEConfig(Section):
    """Mixture-of-experts layers: which blocks have them, how tokens are routed and balanced."""

    num_experts: int = Field(8, ge=0)
    """Experts in each MoE layer, E; 0: every layer is dense."""
    top_k: int = Field(2, ge=1)
    """Experts that each token is sent to, K."""
    every_n_layers: int = Field(1, ge=1)
    """Every n-th block has an MoE layer: the last of each n blocks (1: all blocks)."""
    balance_loss_coef: float = Field(0.01, ge=0)
    """Weight of the load-balancing loss E * sum f_i P_i (Switch Transformer, eq. 4); 1 is perfect balance."""
    balance_scope: Literal["batch", "sequence"] = "batch"
    """What is balanced: the sequences of one forward pass of all ranks together, or each sequence by itself
    (DeepSeek-V3, sec. 2.1.2). With sequence, the loss does not depend on the number of accumulation steps either."""
    z_loss_coef: float = Field(0.001, ge=0)
    """Weight of the router z-loss, mean of logsumexp(logits)^2 (ST-MoE, eq. 5)."""
    noisy_gating: bool = False
    """Add learned noise to the router's logits in training (Shazeer et al. 2017, eq. 4)."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.num_experts and self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} is more than num_experts={self.num_experts}; lower top_k")
        return self

    def is_moe_layer(self, layer: int) -> bool:
        """Whether block number `layer`, counted from 0, has an MoE layer."""
        return self.num_experts > 0 and (layer + 1) % self.every_n_layers == 0


def _divisors(number: int) -> str:
    """Those that can be numbers of heads: a file may name any size."""
    return ", ".join(str(d) for d in range(1, min(number, _MOST_HEADS) + 1) if number % d == 0)
