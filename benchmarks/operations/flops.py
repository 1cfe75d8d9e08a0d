"""Floating-point operations, counted by hand: a multiplication and an addition are two.

Only matrix products count, as is usual. Neither recomputation nor unneeded products count: a token goes to K of E
experts, and a query meets the keys up to its own position.
"""

from typing import NamedTuple


class DecoderShape(NamedTuple):
    """Sizes of a mixture-of-experts decoder and its batch that determine the products."""

    layers: int
    D: int
    I: int
    E: int
    K: int
    heads: int
    kv_heads: int
    vocabulary: int
    sequence: int
    batch: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.sequence


def expert_flops(rows: int, D: int, I: int) -> float:
    """Forward products of the SwiGLU experts: [rows, D] to [rows, 2I] (gate and up), [rows, I] to [rows, D]."""
    return 2.0 * rows * D * (2 * I + I)


def router_flops(tokens: int, D: int, E: int) -> float:
    """Forward product of the router: [tokens, D] to [tokens, E]."""
    return 2.0 * tokens * D * E


def step_flops(shape: DecoderShape) -> dict[str, float]:
    """The products of one training step, by part: forward and backward.

    Backward is twice forward for every product: one for the gradient of each factor. Per layer and token, with
    head width h = D / heads:

    - projections: q and o are D x D, k and v are D x (kv_heads h);
    - attention scores: q kᵀ and p v, each 2 h operations per head and key; position s (from 0) has s + 1 keys, so
      a sequence of S has S (S + 1) / 2 pairs;
    - router: D x E; experts: K of them, each D x 2I and I x D.

    Once: the output embedding, D x vocabulary. The input embedding is a look-up.
    """
    T, h = shape.tokens, shape.D // shape.heads
    pairs = shape.batch * shape.sequence * (shape.sequence + 1) / 2
    forward = {
        "attention projections": shape.layers * 2.0 * T * shape.D * (2 * shape.D + 2 * shape.kv_heads * h),
        "attention scores": shape.layers * 2 * 2.0 * pairs * shape.heads * h,
        "router": shape.layers * router_flops(T, shape.D, shape.E),
        "experts": shape.layers * expert_flops(T * shape.K, shape.D, shape.I),
        "output embedding": 2.0 * T * shape.D * shape.vocabulary,
    }
    return {part: 3 * flops for part, flops in forward.items()}
