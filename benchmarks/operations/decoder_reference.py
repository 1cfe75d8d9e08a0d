"""A mixture-of-experts decoder in fp64 from its definitions, as the reference for training steps.

Llama's block (RMSNorm, rotary positions, grouped-query attention) with Mixtral's MoE layer and tied embeddings. Every
score and every expert is written out, from tensors with canonical names.
"""

import torch
from torch import Tensor

from benchmarks.operations.case import Named
from benchmarks.operations.flops import DecoderShape
from benchmarks.operations.moe_problem import exact_gate_weights

MARGIN = 1e-5
"""Least distance between the logits of the last chosen expert and the next one; closer ones are decided by rounding."""


class DecoderReference:
    """The decoder, and how close to a tie its routers came.

    Args:
        shape: sizes.
        weights: canonical name -> fp64 tensor.
        eps: of the norms.
        rope_theta: base of the rotary positions.
    """

    def __init__(self, shape: DecoderShape, weights: Named, eps: float, rope_theta: float) -> None:
        self.shape, self.weights, self.eps, self.rope_theta = shape, weights, eps, rope_theta
        self.nearest_tie = float("inf")

    def loss(self, token_BS: Tensor, target_BS: Tensor) -> Tensor:
        """Mean negative log-likelihood of the targets (nats)."""
        logits_TV = self.logits(token_BS).flatten(0, 1)
        target_T1 = target_BS.reshape(-1, 1)
        return (torch.logsumexp(logits_TV, dim=1, keepdim=True) - logits_TV.gather(1, target_T1)).mean()

    def logits(self, token_BS: Tensor) -> Tensor:
        """Logits: [B, S] to [B, S, V]."""
        x_BSD = self.weights["embedding.weight"][token_BS]
        for number in range(self.shape.layers):
            block = f"blocks.{number}"
            x_BSD = x_BSD + self._attention(f"{block}.attention", self._norm(f"{block}.attention_norm", x_BSD))
            x_TD = self._norm(f"{block}.ffn_norm", x_BSD).flatten(0, 1)
            x_BSD = x_BSD + self._mixture(f"{block}.ffn", x_TD).view_as(x_BSD)
        return self._norm("final_norm", x_BSD) @ self.weights["embedding.weight"].t()

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + self.eps).sqrt() * self.weights[f"{name}.weight"]

    def _attention(self, name: str, x_BSD: Tensor) -> Tensor:
        width = self.shape.D // self.shape.heads
        q_BHSW, k_BHSW, v_BHSW = (
            (x_BSD @ self.weights[f"{name}.{part}_proj.weight"].t()).unflatten(-1, (-1, width)).transpose(1, 2)
            for part in "qkv"
        )
        q_BHSW, k_BHSW = self._rotated(q_BHSW), self._rotated(k_BHSW)
        shared = self.shape.heads // self.shape.kv_heads
        k_BHSW, v_BHSW = (t.repeat_interleave(shared, dim=1) for t in (k_BHSW, v_BHSW))
        length = x_BSD.shape[1]
        future_SS = torch.ones(length, length, dtype=torch.bool, device=x_BSD.device).triu(1)
        score_BHSS = (q_BHSW @ k_BHSW.transpose(2, 3) / width**0.5).masked_fill(future_SS, float("-inf"))
        out_BSD = (torch.softmax(score_BHSS, dim=-1) @ v_BHSW).transpose(1, 2).flatten(2)
        return out_BSD @ self.weights[f"{name}.o_proj.weight"].t()

    def _rotated(self, x_BHSW: Tensor) -> Tensor:
        """Rotate feature i of a head together with feature i + W/2, by position * theta^(-2i/W)."""
        length, width = x_BHSW.shape[2:]
        position_S, even_H = (torch.arange(0, end, step) for end, step in ((length, 1), (width, 2)))
        # Angles in fp32, as all implementations compute them; the rest in fp64.
        angle_SH = position_S.float()[:, None] * self.rope_theta ** (-even_H.float() / width)
        cos_SH, sin_SH = (f(angle_SH).to(x_BHSW) for f in (torch.cos, torch.sin))
        first, second = x_BHSW.chunk(2, dim=-1)
        return torch.cat([first * cos_SH - second * sin_SH, second * cos_SH + first * sin_SH], dim=-1)

    def _mixture(self, name: str, x_TD: Tensor) -> Tensor:
        K = self.shape.K
        logit_TE, weight_TE = exact_gate_weights(x_TD, self.weights[f"{name}.router.weight"], K)
        if K < self.shape.E:
            best = logit_TE.detach().topk(K + 1, dim=1).values
            self.nearest_tie = min(self.nearest_tie, float((best[:, K - 1] - best[:, K]).min()))
        out_TD = torch.zeros_like(x_TD)
        for e in range(self.shape.E):
            token_R = (weight_TE[:, e] > 0).nonzero().flatten()
            up_H = self.weights[f"{name}.experts.gate_up_proj"][e]
            gate_RI, up_RI = (x_TD[token_R] @ up_H.t()).chunk(2, dim=1)
            expert_out_RD = (gate_RI * torch.sigmoid(gate_RI) * up_RI) @ self.weights[f"{name}.experts.down_proj"][
                e
            ].t()
            out_TD = out_TD.index_add(0, token_R, weight_TE[token_R, e, None] * expert_out_RD)
        return out_TD
