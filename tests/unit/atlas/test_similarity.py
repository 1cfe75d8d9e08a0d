"""How similar experts are, compared with the definitions and checked on known cases."""

import math

import numpy as np
import pytest
import torch

from storyteller_ds.atlas.opened import open_mixture
from storyteller_ds.atlas.routing import moe_layer
from storyteller_ds.atlas.sample import Sample
from storyteller_ds.atlas.similarity import aligned, similarities

CPU = torch.device("cpu")


def hsic(x_TD: np.ndarray, y_TD: np.ndarray) -> float:
    """HSIC by its definition: the U-statistic of order four, a mean over all quadruples of different tokens."""
    k, m = x_TD @ x_TD.T, y_TD @ y_TD.T
    tokens = range(len(x_TD))
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
        for i in tokens
        for j in tokens
        for q in tokens
        for r in tokens
        if len({i, j, q, r}) == 4
    ]
    return float(np.mean(terms))


def test_it_is_the_definition():
    out_ETD = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0)).double()
    out_ETD[1] += out_ETD[0]
    outs = out_ETD.numpy()
    for i in range(3):
        for j in range(3):
            scale = math.sqrt(abs(hsic(outs[i], outs[i]) * hsic(outs[j], outs[j])))
            assert float(aligned(out_ETD)[i, j]) == pytest.approx(hsic(outs[i], outs[j]) / scale)


def test_turned_and_scaled_outputs_are_the_same_and_independent_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 200, 100, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(100, 100, generator=generator).double())[0]
    found = aligned(torch.stack([one, 3 * one @ turn + 5, other]))
    assert found.diagonal() == pytest.approx(1)
    assert float(found[0, 1]) == pytest.approx(1)
    assert abs(float(found[0, 2])) < 0.03
    # Control: the plain estimate finds them similar.
    x, y = one - one.mean(0), other - other.mean(0)
    assert float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())) > 0.25


def test_what_cannot_be_compared():
    assert aligned(torch.randn(2, 3, 5)).isnan().all()
    assert aligned(torch.ones(2, 9, 5)).isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["char", "gpt2"])
def test_outputs_are_those_of_each_expert_by_itself_and_a_copy_is_found(runs, kind):
    mixture = open_mixture(runs[kind], None, CPU, lambda line: None)
    decoder, block = mixture.model.decoder, mixture.blocks[-1]
    experts = moe_layer(decoder, block).experts
    for weight in experts.parameters():
        weight[3] = weight[1]
    # Expert 2 is expert 1 with its features in another order.
    order = torch.arange(15, -1, -1)
    experts.down_proj[2] = experts.down_proj[1][:, order]
    rows = torch.cat([order, 16 + order]) if len(experts.gate_up_proj[0]) == 32 else order
    experts.gate_up_proj[2] = experts.gate_up_proj[1][rows]
    if experts.gate_up_bias is not None:
        experts.gate_up_bias[2], experts.down_bias[2] = experts.gate_up_bias[1][rows], experts.down_bias[1]
    sample = Sample(mixture.model.run, mixture.text, 10**6)
    found = similarities(decoder, mixture.blocks, sample, CPU)[block]
    for each in (found.output_cosine_EE, found.output_cka_EE, found.weight_cosine_EE):
        assert each.shape == (4, 4)
        assert each.diagonal() == pytest.approx(1)
        assert each == pytest.approx(each.T)
        assert each[1, 3] == pytest.approx(1)
        assert each[0, 1] < 0.9
    assert (found.output_cosine_EE[1, 2], found.output_cka_EE[1, 2]) == pytest.approx((1, 1))
    assert found.weight_cosine_EE[1, 2] < 0.9
    inputs = []
    hook = moe_layer(decoder, block).register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    by_hand = []
    for (token_BS, _, position_BS), counts_BS in sample.batches(CPU):
        decoder(token_BS, position_BS=position_BS)
        for x_D in inputs.pop()[counts_BS]:
            one, other = (experts(x_D[None], [0] * e + [1] + [0] * (3 - e))[0] for e in (0, 1))
            by_hand.append(float(torch.cosine_similarity(one, other, dim=0)))
    hook.remove()
    assert found.output_cosine_EE[0, 1] == pytest.approx(np.mean(by_hand), abs=1e-5)
