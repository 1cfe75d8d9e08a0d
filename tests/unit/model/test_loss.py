"""The loss against the formulas, computed from logits and router inputs by hand."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyteller_ds.config.model import MoEConfig
from storyteller_ds.data.batching.micro_batch import IGNORED
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.loss import LossModule, MicroBatchStats
from tests.support.tolerances import COMPLEX, SIMPLE, assert_within

MOE = MoEConfig(num_experts=4, top_k=2, balance_loss_coef=0.3, z_loss_coef=0.07)


class ByHand(NamedTuple):
    nll_sum: Tensor
    count_LE: Tensor
    balance_L: Tensor
    z_L: Tensor
    entropy_L: Tensor
    margin_L: Tensor

    def router_loss(self, moe: MoEConfig) -> Tensor:
        return moe.balance_loss_coef * self.balance_L.sum() + moe.z_loss_coef * self.z_L.sum()


def by_hand(decoder: Decoder, token_BS: Tensor, target_BS: Tensor) -> ByHand:
    """Compute everything over the whole batch, from the routers' inputs and the decoder's logits."""
    routers = [(b.ffn.router.weight, b.ffn.router.top_k, b.ffn) for b in decoder.blocks if hasattr(b.ffn, "router")]
    inputs: list[Tensor] = []
    hooks = [ffn.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for *_, ffn in routers]
    logits_BSV, _ = decoder(token_BS)
    for hook in hooks:
        hook.remove()
    log_prob_BSV = logits_BSV.double() - logits_BSV.double().exp().sum(dim=-1, keepdim=True).log()
    nll = [-log_prob_BSV[b, s, t] for (b, s), t in _entries(target_BS) if t != IGNORED]
    counts, balances, squares, entropies, margins = [], [], [], [], []
    for x_BSD, (weight_ED, top_k, _) in zip(inputs, routers, strict=True):
        logit_TE = x_BSD.double().flatten(0, 1) @ weight_ED.double().t()
        prob_TE = logit_TE.exp() / logit_TE.exp().sum(dim=1, keepdim=True)
        count_E = torch.zeros(len(weight_ED), dtype=torch.float64)
        for prob_E in prob_TE:
            for e in prob_E.argsort(descending=True)[:top_k]:
                count_E[e] += 1
        counts.append(count_E)
        balances.append(len(count_E) * (count_E / count_E.sum() * prob_TE.mean(dim=0)).sum())
        squares.append((logit_TE.exp().sum(dim=1).log() ** 2).mean())
        entropies.append(-(prob_TE * prob_TE.log()).sum(dim=1).mean())
        ordered = [sorted(prob_E.tolist()) for prob_E in prob_TE]
        margins.append(torch.tensor([best - second for *_, second, best in ordered]).double().mean())
    return ByHand(sum(nll), *(torch.stack(values) for values in (counts, balances, squares, entropies, margins)))


def by_hand_per_sequence(decoder: Decoder, token_BS: Tensor, target_BS: Tensor) -> ByHand:
    """Do the same as by_hand, but average the balance losses of the individual sequences."""
    alone = [by_hand(decoder, t[None], target[None]) for t, target in zip(token_BS, target_BS, strict=True)]
    whole = by_hand(decoder, token_BS, target_BS)
    return whole._replace(balance_L=torch.stack([one.balance_L for one in alone]).mean(dim=0))


def _entries(target_BS: Tensor) -> list[tuple[tuple[int, int], int]]:
    return [((b, s), t) for b, row in enumerate(target_BS.tolist()) for s, t in enumerate(row)]


def over_ranks(
    decoder: Decoder, moe: MoEConfig, parts: list[tuple[Tensor, Tensor]], targets: int, accumulation_steps: int = 1
) -> tuple[list[Tensor], list[MicroBatchStats]]:
    """Return each rank's share and statistics; a first pass collects what the second pass all-reduces."""
    sent: list[Tensor] = []

    def collect(packed: Tensor) -> Tensor:
        sent.append(packed.clone())
        return packed

    def total(packed: Tensor) -> Tensor:
        return packed.copy_(torch.stack(sent).sum(dim=0))

    def run(all_reduce: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, MicroBatchStats]]:
        loss_module = LossModule(decoder, moe, all_reduce, len(parts))
        return [loss_module(tokens, wanted, targets, accumulation_steps) for tokens, wanted in parts]

    run(collect)
    assert len(sent) == len(parts), "one message a rank and micro-batch"
    shares, stats = zip(*run(total), strict=True)
    return list(shares), list(stats)


def gradients(decoder: Decoder, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.fixture
def decoder(make_run, make_decoder) -> Decoder:
    return make_decoder(make_run({}, MOE.model_dump()))


@pytest.fixture(name="target_BS")
def targets_with_gaps() -> Tensor:
    """[4, 16] targets: none in the last sequence, and few in the first."""
    target_BS = torch.randint(61, (4, 16), generator=torch.Generator().manual_seed(8))
    target_BS[0, :11] = IGNORED
    target_BS[2, ::3] = IGNORED
    target_BS[3] = IGNORED
    return target_BS


@pytest.fixture(name="token_BS")
def four_sequences() -> Tensor:
    return torch.randint(61, (4, 16), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shares_add_up_to_the_whole_batch(decoder, token_BS, target_BS, ranks):
    targets = int((target_BS != IGNORED).sum())
    expected = by_hand(decoder, token_BS, target_BS)
    parts = list(zip(token_BS.chunk(ranks), target_BS.chunk(ranks), strict=True))
    shares, stats = over_ranks(decoder, MOE, parts, targets)
    loss, expected_loss = sum(shares), expected.nll_sum / targets + expected.router_loss(MOE)
    assert loss.dtype == torch.float32
    assert_within(loss, expected_loss, SIMPLE)
    wanted = gradients(decoder, expected_loss)
    for name, grad in gradients(decoder, loss).items():
        assert_within(grad, wanted[name], COMPLEX)
    for one in stats:
        for field in ByHand._fields:
            assert_within(getattr(one, field), getattr(expected, field), SIMPLE)
        assert_within(one.load_LE, expected.count_LE / (64 * MOE.top_k), SIMPLE)
        assert not any(value.requires_grad for value in one)
        assert all(value.dtype == torch.float64 for value in one)


def test_balance_is_of_the_global_batch_and_not_of_each_rank(decoder, token_BS, target_BS):
    parts = list(zip(token_BS.chunk(2), target_BS.chunk(2), strict=True))
    moe = MOE.model_copy(update={"balance_loss_coef": 1.0})
    expected = by_hand(decoder, token_BS, target_BS)
    alone = sum(by_hand(decoder, *part).balance_L.sum() for part in parts) / 2
    shares, _ = over_ranks(decoder, moe, parts, 1)
    balance = sum(shares) - expected.nll_sum - moe.z_loss_coef * expected.z_L.sum()
    assert abs(balance - expected.balance_L.sum()) < SIMPLE * sum(shares)
    assert abs(balance - alone) > 10 * SIMPLE * sum(shares)


def test_accumulation_steps_are_averaged_for_the_router_and_added_for_the_targets(decoder, token_BS, target_BS):
    targets = int((target_BS != IGNORED).sum())
    steps = list(zip(token_BS.split(2), target_BS.split(2), strict=True))
    shares = [over_ranks(decoder, MOE, [step], targets, accumulation_steps=2)[0][0] for step in steps]
    hands = [by_hand(decoder, *step) for step in steps]
    expected = sum(hand.nll_sum / targets + hand.router_loss(MOE) / 2 for hand in hands)
    assert_within(sum(shares), expected, SIMPLE)


def test_ignored_targets_do_not_count(decoder, token_BS, target_BS):
    expected = by_hand(decoder, token_BS, target_BS).nll_sum
    nll, _ = decoder(token_BS, target_BS=target_BS)
    assert_within(nll, expected, SIMPLE)
    parameters = list(decoder.parameters())
    grads = torch.autograd.grad(nll, parameters)
    for grad, by_logits in zip(grads, torch.autograd.grad(expected, parameters), strict=True):
        assert_within(grad, by_logits, COMPLEX)


def test_a_rank_without_targets_shares_the_router_loss_only(decoder, token_BS, target_BS):
    nothing_BS = torch.full_like(target_BS, IGNORED)
    (share,), (stats,) = over_ranks(decoder, MOE, [(token_BS, nothing_BS)], 100)
    assert stats.nll_sum == 0
    assert_within(share, by_hand(decoder, token_BS, target_BS).router_loss(MOE), SIMPLE)


def test_a_dense_model_has_no_router_loss(make_run, make_decoder, token_BS, target_BS):
    dense = make_decoder(make_run({}, {"num_experts": 0}))
    (share,), (stats,) = over_ranks(dense, MOE, [(token_BS, target_BS)], 5)
    logits_TV = dense(token_BS)[0].double().flatten(0, 1)
    nll_sum = F.cross_entropy(logits_TV, target_BS.flatten(), ignore_index=IGNORED, reduction="sum")
    assert_within(share, nll_sum / 5, SIMPLE)
    assert [value.numel() for value in stats] == [1, 0, 0, 0, 0, 0, 0]


def test_perfect_balance_is_one_and_collapse_is_the_number_of_experts(decoder, token_BS, target_BS):
    routers = [block.ffn.router for block in decoder.blocks]
    with torch.no_grad():
        for router in routers:
            router.weight.zero_()
    (_,), (stats,) = over_ranks(decoder, MOE, [(token_BS, target_BS)], 1)
    assert_within(stats.balance_L, torch.ones(2), SIMPLE)
    assert_within(stats.entropy_L, torch.full((2,), 4.0).log(), SIMPLE)
    with torch.no_grad():
        for block in decoder.blocks:
            # Every token's normalized vector is the same constant, which strongly favors expert 3.
            block.ffn.router.top_k = 1
            block.ffn_norm.weight.zero_()
            block.ffn.router.weight[3] = 50.0
            block.ffn_norm.register_forward_hook(lambda _, args, out: (torch.ones_like(out[0]), out[1]))
    (_,), (stats,) = over_ranks(decoder, MOE, [(token_BS, target_BS)], 1)
    assert_within(stats.balance_L, torch.full((2,), 4.0), SIMPLE)
    assert stats.load_LE.tolist() == [[0, 0, 0, 1]] * 2


def test_the_load_has_no_gradient_but_the_probabilities_have(decoder, token_BS, target_BS):
    """The balance loss treats f_i as a constant: its gradient is E * coef * f_i dP_i."""
    moe = MOE.model_copy(update={"balance_loss_coef": 1.0, "z_loss_coef": 0.0})
    nothing_BS = torch.full_like(target_BS, IGNORED)
    (share,), _ = over_ranks(decoder, moe, [(token_BS, nothing_BS)], 1)
    grads = gradients(decoder, share)
    assert all(grads[f"blocks.{i}.ffn.router.weight"].any() for i in range(2))
    assert not grads["blocks.1.ffn.experts.down_proj"].any()
    assert grads["blocks.0.ffn.experts.down_proj"].any()


SPLITS = [(ranks, passes) for ranks in (1, 2, 4) for passes in (1, 2, 4) if ranks * passes <= 4]


def one_step(
    decoder: Decoder, moe: MoEConfig, token_BS: Tensor, target_BS: Tensor, ranks: int, passes: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the loss, the balance losses as the metrics report them, and the gradients of an optimizer step."""
    targets = int((target_BS != IGNORED).sum())
    shares: list[Tensor] = []
    balances: list[Tensor] = []
    for tokens, wanted in zip(token_BS.chunk(passes), target_BS.chunk(passes), strict=True):
        parts = list(zip(tokens.chunk(ranks), wanted.chunk(ranks), strict=True))
        of_ranks, stats = over_ranks(decoder, moe, parts, targets, passes)
        shares += of_ranks
        balances.append(stats[0].balance_L)
    loss = sum(shares, torch.zeros(()))
    return loss.detach(), torch.stack(balances).mean(dim=0), gradients(decoder, loss)


@pytest.mark.parametrize(("ranks", "passes"), SPLITS)
def test_in_the_scope_of_a_sequence_no_split_of_a_step_matters(decoder, token_BS, target_BS, ranks, passes):
    moe = MOE.model_copy(update={"balance_scope": "sequence"})
    hand = by_hand_per_sequence(decoder, token_BS, target_BS)
    expected = hand.nll_sum / int((target_BS != IGNORED).sum()) + hand.router_loss(moe)
    wanted = gradients(decoder, expected)
    loss, balance_L, grads = one_step(decoder, moe, token_BS, target_BS, ranks, passes)
    assert_within(loss, expected, SIMPLE)
    assert_within(balance_L, hand.balance_L, SIMPLE)
    for name, grad in grads.items():
        assert_within(grad, wanted[name], COMPLEX)


def test_in_the_scope_of_a_batch_the_split_into_passes_does_matter(decoder, token_BS, target_BS):
    """Negative control for the comparison above: passes matter, only the number of ranks does not."""
    loss, balance_L, grads = one_step(decoder, MOE, token_BS, target_BS, 1, 1)
    same, *_ = one_step(decoder, MOE, token_BS, target_BS, 4, 1)
    assert_within(same, loss, SIMPLE)
    other, other_balance_L, other_grads = one_step(decoder, MOE, token_BS, target_BS, 1, 4)
    assert abs(other - loss) > 100 * SIMPLE * loss
    assert (other_balance_L - balance_L).abs().max() > 100 * SIMPLE
    with pytest.raises(AssertionError, match="difference"):
        assert_within(other_grads["blocks.0.ffn.router.weight"], grads["blocks.0.ffn.router.weight"], COMPLEX)


def test_a_batch_may_be_balanced_while_its_sequences_are_not(decoder, token_BS, target_BS):
    """Two sequences use expert 0 and two expert 1: the batch is half balanced, a single sequence not at all."""
    for block in decoder.blocks:
        block.ffn.router.top_k = 1
        with torch.no_grad():
            block.ffn.router.weight.zero_()
            block.ffn.router.weight[0, 0] = block.ffn.router.weight[1, 1] = 50.0
        by_sequence_BSD = torch.zeros(4, 16, 32)
        by_sequence_BSD[:2, :, 0] = by_sequence_BSD[2:, :, 1] = 1.0
        block.ffn_norm.register_forward_hook(lambda _, args, out, to=by_sequence_BSD: (out[0] * 0 + to, out[1]))
    for scope, balance in (("batch", 2.0), ("sequence", 4.0)):
        moe = MOE.model_copy(update={"balance_scope": scope})
        _, balance_L, _ = one_step(decoder, moe, token_BS, target_BS, 1, 1)
        assert_within(balance_L, torch.full((2,), balance, dtype=torch.float64), SIMPLE)
