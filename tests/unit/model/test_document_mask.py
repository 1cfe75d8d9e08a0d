"""Documents packed into one sequence are computed as if each stood alone."""

import pytest
import torch
from torch import Tensor

from storyteller_ds.data.batching.micro_batch import IGNORED
from storyteller_ds.data.batching.sequences import document_positions
from storyteller_ds.model.attention import document_mask
from storyteller_ds.model.loss import LossModule
from tests.support.tolerances import COMPLEX, EXACT, SIMPLE, assert_within

START = 0
LENGTHS = ((5, 1, 7, 3), (16,), (2, 14))
"""Document lengths in three sequences of 16 tokens; the last sequence begins in the middle of a document."""


@pytest.fixture(name="packed_BS")
def documents_in_sequences() -> Tensor:
    token_BS = torch.randint(1, 61, (3, 16), generator=torch.Generator().manual_seed(3))
    for row, lengths in zip(token_BS, LENGTHS, strict=True):
        begin = 0
        for length in lengths:
            row[begin] = START
            begin += length
    token_BS[2, 0] = 9
    return token_BS


def positions(token_BS: Tensor) -> Tensor:
    return torch.from_numpy(document_positions((token_BS == START).numpy()))


def test_positions_count_from_the_beginning_of_each_document(packed_BS):
    expected = [[i for length in lengths for i in range(length)] for lengths in LENGTHS]
    assert positions(packed_BS).tolist() == expected


def test_the_mask_is_causal_and_ends_at_the_document(packed_BS):
    mask_BSS = document_mask(positions(packed_BS))[:, 0]
    for b, lengths in enumerate(LENGTHS):
        document = [number for number, length in enumerate(lengths) for _ in range(length)]
        for i in range(16):
            for j in range(16):
                assert mask_BSS[b, i, j] == (j <= i and document[i] == document[j])


MODELS = {
    "rope": {},
    "learned positions": {"position": "learned", "norm": "layernorm", "activation": "gelu"},
    "qk-norm and grouped heads": {"qk_norm": True, "num_kv_heads": 2},
    "recomputed blocks": {"activation_checkpointing": "selective"},
}


@pytest.mark.parametrize("model", MODELS)
def test_each_document_is_computed_as_if_it_stood_alone(make_run, make_decoder, packed_BS, model):
    decoder = make_decoder(make_run(MODELS[model]))
    together_BSV, _ = decoder(packed_BS, position_BS=positions(packed_BS))
    for b, lengths in enumerate(LENGTHS):
        alone = [decoder(part[None])[0][0] for part in packed_BS[b].split(lengths)]
        assert_within(together_BSV[b], torch.cat(alone), COMPLEX)
    # Control: without the positions, the tokens before a document change its logits.
    apart_BSV, _ = decoder(packed_BS)
    assert_within(apart_BSV[1], together_BSV[1], SIMPLE)
    with pytest.raises(AssertionError, match="difference"):
        assert_within(apart_BSV[0], together_BSV[0], COMPLEX)


@pytest.mark.parametrize(("experts", "tolerance"), [(0, EXACT), (4, SIMPLE)])
def test_changing_one_story_leaves_the_others_as_they_are(make_run, make_decoder, packed_BS, experts, tolerance):
    """Bit-identical without experts; with them, a matrix product with another number of rows may round differently."""
    decoder = make_decoder(make_run(moe={"num_experts": experts}))
    before_BSV, _ = decoder(packed_BS, position_BS=positions(packed_BS))
    changed_BS = packed_BS.clone()
    changed_BS[0, 7:13] = torch.arange(11, 17)  # the third document except its first token
    after_BSV, _ = decoder(changed_BS, position_BS=positions(changed_BS))
    same = torch.ones(3, 16, dtype=torch.bool)
    same[0, 7:13] = False
    assert_within(after_BSV[same], before_BSV[same], tolerance)
    assert not torch.equal(after_BSV[~same], before_BSV[~same])
    unmasked_BSV = decoder(changed_BS)[0] - decoder(packed_BS)[0]
    assert unmasked_BSV[0, 13:].abs().max() > 1e-3  # control: without the mask, later tokens change


def test_loss_and_gradient_are_the_sum_over_documents(make_run, make_decoder, packed_BS):
    run = make_run(moe={"balance_loss_coef": 0.0, "z_loss_coef": 0.0})
    decoder = make_decoder(run)
    target_BS = torch.roll(packed_BS, -1, dims=1)
    target_BS[:, -1] = IGNORED
    module = LossModule(decoder, run.moe, lambda tensor: tensor, 1)

    def gradients() -> dict[str, Tensor]:
        found = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
        decoder.zero_grad()
        return found

    loss, _ = module(packed_BS, target_BS, 1, 1, positions(packed_BS))
    loss.backward()
    together = gradients()
    parts = [
        module(tokens[None], targets[None], 1, 1)[0]
        for row, wanted, lengths in zip(packed_BS, target_BS, LENGTHS, strict=True)
        for tokens, targets in zip(row.split(lengths), wanted.split(lengths), strict=True)
    ]
    alone = torch.stack(parts).sum()
    alone.backward()
    assert_within(loss.detach(), alone.detach(), SIMPLE)
    for name, gradient in gradients().items():
        assert_within(together[name], gradient, COMPLEX)
