"""An atlas, compared with plain loops and checked on routers with known rules."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from storyteller_ds import load
from storyteller_ds.atlas.atlas import Atlas, make_atlas
from storyteller_ds.atlas.features import features_of
from storyteller_ds.atlas.knock_out import cheapest, knock_out, one_by_one, without
from storyteller_ds.atlas.opened import open_mixture
from storyteller_ds.atlas.routing import routed
from storyteller_ds.atlas.sample import Sample
from storyteller_ds.data.tokenizers.pieces import pieces
from storyteller_ds.errors import DataError, UserError
from storyteller_ds.evaluation.evaluate import Asked, evaluate
from storyteller_ds.generation.sampling import SamplingConfig
from tests.support.rule_router import write_ruled

CPU = torch.device("cpu")
ALL = 10**6


def silent(line: str) -> None:
    pass


def atlas(path, data=None, tokens=ALL, knock_out_tokens=ALL) -> Atlas:
    return make_atlas(path, data, tokens, knock_out_tokens, CPU, silent)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["char", "bpe", "gpt2"])
def test_where_tokens_go_is_what_a_plain_loop_finds(runs, kind):
    mixture = open_mixture(runs[kind], None, CPU, silent)
    sample = Sample(mixture.model.run, mixture.text, ALL)
    found = routed(mixture.model.decoder, sample, CPU, silent)
    ids = torch.from_numpy(mixture.text.stream.read(0, len(mixture.text.stream)))
    decoder, length = mixture.model.decoder, mixture.model.run.data.sequence_length
    inputs: dict[int, torch.Tensor] = {}
    hooks = [
        decoder.blocks[b].ffn.register_forward_pre_hook(lambda m, a, b=b: inputs.__setitem__(b, a[0]))
        for b in mixture.blocks
    ]
    t = 0
    for start in range(0, len(ids) - 1, length):
        window = ids[start : start + length + 1]
        logits = decoder(window[None, :-1])[0][0]
        nll = F.cross_entropy(logits.double(), window[1:], reduction="none")
        for i in range(len(window) - 1):
            assert found.nll_T[t] == pytest.approx(float(nll[i]), rel=1e-4)
            for layer, block in enumerate(mixture.blocks):
                score = decoder.blocks[block].ffn.router.weight @ inputs[block][0, i]
                best = sorted(range(len(score)), key=lambda e, score=score: -float(score[e]))[:2]
                gate = torch.tensor([float(score[e]) for e in best]).softmax(0)
                assert found.expert_LTK[layer, t].tolist() == best
                assert found.weight_LTK[layer, t] == pytest.approx(gate.numpy(), abs=1e-5)
            t += 1
    for hook in hooks:
        hook.remove()
    assert t == len(sample.place_T) == found.expert_LTK.shape[1]


@pytest.mark.parametrize("kind", ["char", "bpe", "masked", "sentencepiece"])
def test_bits_per_byte_are_those_of_evaluate(runs, kind):
    found = atlas(runs[kind], knock_out_tokens=0)
    nothing_told = Asked(None, 0, SamplingConfig(), None)
    expected = evaluate(runs[kind], nothing_told, CPU, silent).prediction.bits_per_byte
    assert found.bits_per_byte == pytest.approx(expected, rel=1e-5)
    assert found.stories == len(evaluate(runs[kind], nothing_told, CPU, silent).text.stories)


@pytest.mark.parametrize("kind", ["char", "bpe", "gpt2", "one_each", "masked"])
def test_loads_gates_and_shares_are_those_of_a_loop(runs, kind):
    found = atlas(runs[kind], knock_out_tokens=0)
    mixture = open_mixture(runs[kind], None, CPU, silent)
    sample = Sample(mixture.model.run, mixture.text, ALL)
    each = routed(mixture.model.decoder, sample, CPU, silent)
    (kinds, *_) = features_of(mixture.text, sample)
    assert [layer.block for layer in found.layers] == mixture.blocks
    for layer, of_layer in enumerate(found.layers):
        assert sum(expert.load for expert in of_layer.experts) == pytest.approx(1)
        assert sum(expert.first for expert in of_layer.experts) == pytest.approx(1)
        for expert in of_layer.experts:
            places = [
                (t, k)
                for t, chosen in enumerate(each.expert_LTK[layer].tolist())
                for k, one in enumerate(chosen)
                if one == expert.number
            ]
            assert expert.load == pytest.approx(len(places) / each.expert_LTK[layer].size)
            assert expert.first == pytest.approx(sum(k == 0 for _, k in places) / len(sample.place_T))
            if places:
                assert expert.gate == pytest.approx(np.mean([each.weight_LTK[layer][place] for place in places]))
            counts = np.bincount([kinds.value_T[t] for t, _ in places], minlength=len(kinds.values))
            assert expert.shares["kind"] == pytest.approx(tuple(counts / max(1, len(places))))


def test_a_rule_of_tokens_is_found(ruled, text):
    found = atlas(ruled, text)
    for layer in found.layers:
        follows = {each.feature: each for each in layer.information}
        assert follows["token"].share == pytest.approx(1)
        assert follows["token"].bits == pytest.approx(layer.entropy)
        # An unrelated feature says nothing about the expert; the next token says only what the language implies.
        assert abs(follows["part of the story"].share) < 0.05
        assert follows["next token"].share < 0.9
        # Experts 0 and 1 are also second choices; expert 2 serves only the tokens of its rule, so it prefers those.
        own = layer.experts[2].preferences
        assert len(own) > 5
        assert {each.token % 3 for each in own} == {2}
        assert all(each.times == pytest.approx(1 / layer.experts[2].first) for each in own)
    assert {each.feature: each.share for each in found.layers[1].information}[
        "expert of the layer before"
    ] == pytest.approx(1)
    assert np.trace(found.layers[1].from_previous_EE) == found.tokens


def test_a_rule_of_kinds_is_found(runs, text, tmp_path):
    model = load(runs["char"], device="cpu", precision="fp32")
    content = pieces(model.tokenizer)
    letter = {i: each.decode().isalpha() for i, each in content.items()}
    folder = write_ruled(model, lambda i: int(letter.get(i, False)), 2, tmp_path / "kinds")
    found = atlas(folder, text, knock_out_tokens=0)
    follows = {each.feature: each.share for each in found.layers[0].information}
    assert follows["kind"] > 0.99
    assert follows["place in a word"] > 0.9  # except for apostrophes
    assert follows["byte of the story"] < 0.05


def test_an_expert_that_is_never_chosen_costs_nothing(ruled, text):
    found = atlas(ruled, text)
    for layer in found.layers:
        idle, busy = layer.experts[3], layer.experts[0]
        assert (idle.load, idle.first, idle.gate, idle.preferences) == (0, 0, None, ())
        assert idle.cost is not None
        assert abs(idle.cost.value) < 1e-9
        assert busy.cost is not None
        assert abs(busy.cost.value) > 1e-4
        assert np.isnan(layer.pairs_expected_EE[3]).all()
    assert found.prunings[0].measured.dropped.keys() == {0, 1}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["char", "gpt2", "one_each"])
def test_without_an_expert_is_a_model_from_which_it_was_cut_by_hand(runs, kind):
    mixture = open_mixture(runs[kind], None, CPU, silent)
    decoder, block = mixture.model.decoder, mixture.blocks[-1]
    token_BS = torch.randint(60, (3, 32), generator=torch.Generator().manual_seed(0))
    whole = decoder(token_BS)[0]
    for missing in ([0], [2], [1, 2]):
        with without(decoder, {block: missing}):
            found, stats = decoder(token_BS)
        assert not set(missing) & set(stats[-1].expert_TK.flatten().tolist())
        layer = load(runs[kind], device="cpu", precision="fp32").decoder
        kept = [e for e in range(4) if e not in missing]
        ffn = layer.blocks[block].ffn
        ffn.router.weight = torch.nn.Parameter(ffn.router.weight[kept])
        for name, weight in list(ffn.experts.named_parameters()):
            setattr(ffn.experts, name, torch.nn.Parameter(weight[kept]))
        torch.testing.assert_close(found, layer(token_BS)[0], rtol=1e-5, atol=1e-5)
        assert (found - whole).abs().max() > 1e-3, "control: it is missed"
    assert torch.equal(decoder(token_BS)[0], whole), "afterwards all are there"


def test_costs_are_differences_of_bits_per_byte_and_the_interval_is_that_of_stories(runs):
    mixture = open_mixture(runs["char"], None, CPU, silent)
    decoder, sample = mixture.model.decoder, Sample(mixture.model.run, mixture.text, ALL)
    nll_T = sample.nll(decoder, CPU)
    costs = knock_out(decoder, sample, one_by_one(mixture.blocks, 4), nll_T, CPU, silent)
    assert [each.dropped for each in costs[:5]] == [{0: (0,)}, {0: (1,)}, {0: (2,)}, {0: (3,)}, {1: (0,)}]
    for each in costs:
        with without(decoder, each.dropped):
            now_T = sample.nll(decoder, CPU)
        bits, size = (now_T - nll_T).sum() / math.log(2), sample.bytes_T.sum()
        assert each.cost.value == pytest.approx(bits / size)
    dropped, predicted = cheapest(costs, 2)
    by_hand = {b: sorted(costs[4 * b : 4 * b + 4], key=lambda each: each.cost.value)[:2] for b in (0, 1)}
    assert dropped == {b: tuple(sorted(c.dropped[b][0] for c in them)) for b, them in by_hand.items()}
    assert predicted == pytest.approx(sum(c.cost.value for them in by_hand.values() for c in them))


def test_a_sample_is_a_part_of_the_text_as_the_model_sees_it(runs):
    mixture = open_mixture(runs["char"], None, CPU, silent)
    whole, part = (Sample(mixture.model.run, mixture.text, tokens) for tokens in (ALL, 150))
    assert 150 <= len(part.place_T) < 200
    assert part.story_T.max() + 1 == len(np.unique(part.story_T)) <= whole.story_T.max() + 1
    nll = dict(zip(whole.place_T.tolist(), whole.nll(mixture.model.decoder, CPU), strict=True))
    assert part.nll(mixture.model.decoder, CPU) == pytest.approx([nll[place] for place in part.place_T.tolist()])
    spread = np.diff(np.unique((part.place_T - 1) // 32))
    assert spread.max() - spread.min() <= 1


@pytest.mark.parametrize("kind", ["char", "bpe", "sentencepiece"])
def test_features_are_those_of_the_text_before_each_token(runs, text, kind):
    mixture = open_mixture(runs[kind], text, CPU, silent)
    sample = Sample(mixture.model.run, mixture.text, ALL)
    of = {each.name: [each.values[i] for i in each.value_T] for each in features_of(mixture.text, sample)}
    content = pieces(mixture.text.tokenizer)
    ids = mixture.text.stream.take(sample.place_T - 1).tolist()
    assert of["kind"][0] == "end of a story"
    assert [of["kind"][t] == "end of a story" for t in range(len(ids))] == [
        i == mixture.text.tokenizer.end_of_text for i in ids
    ]
    for t, i in enumerate(ids):
        solid = content.get(i, b"").decode(errors="replace").strip()
        if solid and solid.isascii():
            kind_of_last = of["kind"][t]
            assert (kind_of_last in ("word", "name")) == (solid[-1].isalpha()), (solid, kind_of_last)
            assert (kind_of_last == "number") == solid[-1].isdigit()
        if solid == '"':
            assert of["kind"][t] == "quotation mark"
    spoken = "".join(content[i].decode(errors="replace") for i, s in zip(ids, of["speech"], strict=True) if s != "told")
    assert "cakes" in spoken
    assert "sang" not in spoken
    thirds = [of["part of the story"].count(f"{which} third") for which in ("opening", "middle", "last")]
    assert max(thirds) < 1.5 * min(thirds)
    assert set(of["byte of the story"]) == {"byte 0 to 100", "byte 100 to 300"}


def test_the_same_atlas_twice(runs):
    first, second = (atlas(runs["bpe"]) for _ in range(2))
    assert first.layers[0].experts == second.layers[0].experts
    assert first.prunings == second.prunings


def test_what_cannot_be(runs, text, tmp_path):
    with pytest.raises(UserError, match="is a dense model and has no experts; give a mixture"):
        atlas(runs["dense"])
    with pytest.raises(UserError, match="no checkpoint at"):
        atlas(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt"):
        atlas(runs["char"], text.model_copy(update={"validation": str(tmp_path / "empty.txt")}))


def test_one_expert_and_all_experts(runs):
    single, every = atlas(runs["single"]), atlas(runs["all"])
    assert single.costs == []
    assert single.prunings == ()
    assert any("there is one expert in each layer" in each for each in single.remarks)
    assert [each.share for each in single.layers[0].information] == [0] * len(single.layers[0].information)
    assert every.prunings == ()
    assert any("every token goes to all 2 experts" in each for each in every.remarks)
    assert len(every.costs) == 4
    assert every.layers[0].experts[0].load == 0.5


def test_a_text_of_one_letter(runs, tmp_path, text):
    (tmp_path / "short.txt").write_text("a")
    found = atlas(runs["char"], text.model_copy(update={"validation": str(tmp_path / "short.txt")}))
    assert found.tokens == 2
    assert found.bits_per_byte.half_width is None
    assert any("only 2 tokens were read" in each for each in found.remarks)
