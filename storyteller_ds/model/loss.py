"""The loss that training minimizes, split into shares that add up over all ranks to one global number."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from storyteller_ds.config.model import MoEConfig
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.moe.balance import RouterStats, batch_balance, sequence_balance


class MicroBatchStats(NamedTuple):
    """Statistics of one accumulation step over all ranks, in fp64 if the device has it and without gradient."""

    nll_sum: Tensor
    """[] negative log-likelihood of the targets (nats)."""
    count_LE: Tensor
    """[L, E] routed tokens of each expert of each MoE layer."""
    load_LE: Tensor
    """[L, E] the same as fractions of the layer's routed tokens: f_i of the balance loss."""
    balance_L: Tensor
    """[L] balance loss of each MoE layer, in the scope of moe.balance_scope; 1 is perfect balance."""
    z_L: Tensor
    """[L] mean over tokens of logsumexp(logits)^2."""
    entropy_L: Tensor
    """[L] mean over tokens of the router's entropy (nats)."""
    margin_L: Tensor
    """[L] mean over tokens of the best expert's probability minus the second-best's."""


class LossModule(nn.Module):
    """Decoder and loss in one module, as DeepSpeed requires.

    A forward pass gives this rank's *loss share*. The shares of all ranks and accumulation steps of an optimizer step
    add up to

        sum of nll / number of targets
        + mean over accumulation steps of (balance_loss_coef * sum over layers of E * sum_i f_i P_i
                                    + z_loss_coef * sum over layers of mean over tokens of z^2)

    where f_i is the fraction of routed tokens that expert i gets and P_i its mean probability, both over the tokens
    selected by moe.balance_scope (docs/decisions/0002):

    - batch: all sequences of an accumulation step. f_i is counted over all ranks (one all-reduce), so that the
      sum does not depend on how sequences are split over ranks.
    - sequence: each sequence by itself, then the mean over sequences (DeepSeek-V2, 2405.04434, eq. 23 to 25;
      DeepSeek-V3, 2412.19437, eq. 17 to 20, whose f_i includes the factor E). The sum does not depend on any split.

    Args:
        decoder: the model.
        moe: coefficients.
        all_reduce: sums a tensor over all ranks, in place, and returns it.
        world_size: number of ranks.
    """

    def __init__(
        self, decoder: Decoder, moe: MoEConfig, all_reduce: Callable[[Tensor], Tensor], world_size: int
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.moe = moe
        self.per_sequence = moe.balance_scope == "sequence"
        self.all_reduce = all_reduce
        self.world_size = world_size

    def forward(
        self,
        token_BS: Tensor,
        target_BS: Tensor,
        targets_in_step: Tensor | int,
        accumulation_steps: int,
        position_BS: Tensor | None = None,
    ) -> tuple[Tensor, MicroBatchStats]:
        """The loss share of these sequences.

        Args:
            token_BS: [B, S] int64.
            target_BS: [B, S] int64, IGNORED where there is none.
            targets_in_step: targets of the whole optimizer step, all ranks together.
            accumulation_steps: number of accumulation steps in the optimizer step.
            position_BS: [B, S] int64, positions within documents; None: documents are not separated.

        Returns:
            The loss share [] fp32, and the statistics of this accumulation step summed over ranks.
        """
        nll_sum, layers = self.decoder(token_BS, target_BS=target_BS, position_BS=position_BS)
        sequences, tokens = len(token_BS) * self.world_size, token_BS.numel() * self.world_size
        # Zero for the batch scope, whose f_i are known only after the all-reduce.
        balance_sums = [
            sequence_balance(layer, len(token_BS)).sum() if self.per_sequence else layer.z_sum.new_zeros(())
            for layer in layers
        ]
        stats = self._summed_over_ranks(nll_sum, layers, balance_sums, sequences, tokens)
        loss_share = nll_sum / targets_in_step
        for load_E, layer, balance_sum in zip(stats.load_LE, layers, balance_sums, strict=True):
            balance = balance_sum / sequences if self.per_sequence else batch_balance(load_E, layer.prob_sum_E, tokens)
            router_loss = self.moe.balance_loss_coef * balance + self.moe.z_loss_coef * layer.z_sum / tokens
            loss_share = loss_share + router_loss / accumulation_steps
        return loss_share, stats

    @torch.no_grad()
    def _summed_over_ranks(
        self, nll_sum: Tensor, layers: list[RouterStats], balance_sums: list[Tensor], sequences: int, tokens: int
    ) -> MicroBatchStats:
        # MPS has no fp64; it is one rank, and its sums are small enough for fp32.
        dtype = torch.float32 if nll_sum.device.type == "mps" else torch.float64
        depth, num_experts = len(layers), layers[0].count_E.numel() if layers else 0
        sums = [
            (s.count_E, s.prob_sum_E, s.z_sum, s.entropy_sum, balance, s.margin_sum())
            for s, balance in zip(layers, balance_sums, strict=True)
        ]
        # One all-reduce for everything: a micro-batch costs one message, however many layers.
        columns = [one.to(dtype).reshape(-1) for of_layer in sums for one in of_layer]
        packed = self.all_reduce(torch.cat([nll_sum.detach().to(dtype).reshape(1), *columns]))
        table_LC = packed[1:].view(depth, 2 * num_experts + 4)
        sizes = [num_experts, num_experts, 1, 1, 1, 1]
        count_LE, prob_LE, z_L, entropy_L, balance_L, margin_L = table_LC.split(sizes, dim=1)
        load_LE = count_LE / count_LE.sum(dim=1, keepdim=True)
        return MicroBatchStats(
            nll_sum=packed[0],
            count_LE=count_LE,
            load_LE=load_LE,
            balance_L=balance_L.flatten() / sequences
            if self.per_sequence
            else num_experts * (load_LE * prob_LE).sum(dim=1) / tokens,
            z_L=z_L.flatten() / tokens,
            entropy_L=entropy_L.flatten() / tokens,
            margin_L=margin_L.flatten() / tokens,
        )
