"""The decoder: token ids to logits."""

from collections.abc import Callable, Sequence

import torch
from storyteller_kernels import capped, linear, linear_cross_entropy
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.micro_batch import IGNORED
from storyteller_ds.model.activation_checkpointing import BlockRunner
from storyteller_ds.model.attention import Attention, LayerCache, RotaryEmbedding, document_mask
from storyteller_ds.model.feed_forward import FeedForward
from storyteller_ds.model.linear import Embedding, Linear
from storyteller_ds.model.moe.balance import RouterStats
from storyteller_ds.model.moe.local import LocalMoE
from storyteller_ds.model.norm import build_norm

MoEFactory = Callable[[ModelConfig, MoEConfig], nn.Module]
"""Builds an MoE layer: [B, S, D] to ([B, S, D], RouterStats)."""


class ResidualScale(nn.Module):
    """a x + b x_0 with two learned scalars: the residual stream x, and the embedding x_0 that it started from.

    As in nanochat and modded-nanogpt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(2))

    def forward(self, x_BSD: Tensor, first_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        scale: Tensor = self.scale.to(x_BSD.dtype)
        return scale[0] * x_BSD + scale[1] * first_BSD


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, model: ModelConfig, ffn: nn.Module, value_vocabulary: int) -> None:
        super().__init__()
        self.residual = ResidualScale() if model.residual_scales else None
        self.attention_norm = build_norm(model)
        self.attention = Attention(model, value_vocabulary)
        self.ffn_norm = build_norm(model)
        self.ffn = ffn
        self.dropout = nn.Dropout(model.dropout)

    def forward(
        self,
        first_BSD: Tensor,
        x_BSD: Tensor,
        token_BS: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None,
        mask_BHSS: Tensor | None,
    ) -> tuple[Tensor, RouterStats | None]:
        """[B, S, D] to [B, S, D], and the router's statistics if there is a router; see Attention for the arguments.

        `first_BSD` is the stream before the first block.
        """
        if self.residual is not None:
            x_BSD = self.residual(x_BSD, first_BSD)
        seen_BSD = self.dropout(self.attention(self.attention_norm(x_BSD), rotary, cache, mask_BHSS, token_BS))
        normal_BSD, x_BSD = self.ffn_norm(seen_BSD, residual=x_BSD)
        out_BSD, stats = self.ffn(normal_BSD)
        return x_BSD + self.dropout(out_BSD), stats


class Decoder(nn.Module):
    """A causal language model.

    Args:
        run: its model, moe and tokenizer sections determine the shapes.
        make_moe: builds the MoE layers; the default keeps all experts on this device.

    Attributes:
        dtype: dtype of the residual stream and of all matrix products, to which weights are cast (docs/precision.md);
            None: that of the weights.
    """

    def __init__(self, run: RunConfig, make_moe: MoEFactory = LocalMoE) -> None:
        super().__init__()
        model, moe = run.model, run.moe
        self.context_length = run.context_length
        self.vocab_size = run.tokenizer.vocab_size
        self.softcap = model.logit_softcap
        self.dtype: torch.dtype | None = None
        self.run_block = BlockRunner(model)
        self.embedding = Embedding(self.vocab_size, model.hidden_size)
        self.rotary = RotaryEmbedding(model.head_dim, model.rope_theta) if model.position == "rope" else None
        self.position_embedding = (
            Embedding(self.context_length, model.hidden_size) if model.position == "learned" else None
        )
        self.dropout = nn.Dropout(model.dropout)
        self.blocks = nn.ModuleList(
            Block(
                model,
                make_moe(model, moe) if moe.is_moe_layer(i) else FeedForward(model),
                self.vocab_size if model.has_value_embedding(i) else 0,
            )
            for i in range(model.num_layers)
        )
        self.final_norm = build_norm(model)
        self.lm_head = None if model.tie_embeddings else Linear(model.hidden_size, self.vocab_size, bias=False)

    def forward(
        self,
        token_BS: Tensor,
        caches: Sequence[LayerCache] | None = None,
        start: int = 0,
        target_BS: Tensor | None = None,
        position_BS: Tensor | None = None,
        mask_BHSS: Tensor | None = None,
    ) -> tuple[Tensor, list[RouterStats]]:
        """Compute the logits of each next token or, given targets, their loss without ever holding all logits.

        Args:
            token_BS: [B, S] int64.
            caches: one per block, for generation; None in training.
            start: position of the first token.
            target_BS: [B, S] int64, the next tokens, IGNORED where there is none; or None.
            position_BS: [B, S] int64, the position of each token in its document, to which its attention is limited;
                negative: padding before the document. None: one document, which begins at `start`.
            mask_BHSS: [B, 1, S, T] bool, which of the T positions in the caches each token attends to; None: given by
                position_BS.

        Returns:
            Logits [B, S, V] or, with targets, the sum of -log p(target) (nats) [] fp32 over targets other than IGNORED;
            and the statistics of each MoE layer in order.

        Raises:
            ValueError: the sequence ends beyond context_length, or has more tokens than that if positions are given.
        """
        end = start + token_BS.shape[1]
        if (end if position_BS is None else token_BS.shape[1]) > self.context_length:
            raise ValueError(f"{end} tokens do not fit the context of {self.context_length}")
        position = torch.arange(start, end, device=token_BS.device) if position_BS is None else position_BS
        if mask_BHSS is None and position_BS is not None:
            mask_BHSS = document_mask(position_BS, start)
        x_BSD = self.embedding(token_BS)
        x_BSD = x_BSD.to(self.dtype or x_BSD.dtype)
        if self.position_embedding is not None:
            x_BSD = x_BSD + self.position_embedding(position.clamp(min=0)).to(x_BSD.dtype)
        rotary = self.rotary(position.unsqueeze(-2)) if self.rotary is not None else None
        x_BSD = first_BSD = self.dropout(x_BSD)
        all_stats = []
        for i, block in enumerate(self.blocks):
            if caches is None:
                x_BSD, stats = self.run_block(block, first_BSD, x_BSD, token_BS, rotary, None, mask_BHSS)
            else:  # run once only: a cache must not see its positions twice
                x_BSD, stats = block(first_BSD, x_BSD, token_BS, rotary, caches[i], mask_BHSS)
            if stats is not None:
                all_stats.append(stats)
        x_BSD = self.final_norm(x_BSD)
        head = (self.embedding if self.lm_head is None else self.lm_head).weight.to(x_BSD.dtype)
        if target_BS is None:
            return capped(linear(x_BSD, head), self.softcap), all_stats
        nll_sum = linear_cross_entropy(
            x_BSD.flatten(0, 1), head, target_BS.flatten(), ignore_index=IGNORED, softcap=self.softcap
        )
        return nll_sum, all_stats


def empty_decoder(run: RunConfig) -> Decoder:
    """A decoder on the meta device: names and shapes, but no memory.

    Raises:
        RuntimeError, OverflowError, TypeError: raised by torch for sizes beyond 64 bits.
    """
    with torch.device("meta"):
        return Decoder(run)
