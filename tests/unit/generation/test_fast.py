"""The compiled decoder step matches torch's, for every kind of model."""

import copy
import os
from typing import Any

import numpy as np
import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.decode import generate_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters

pytest.importorskip("numba")

GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True}
NANOCHAT = {
    "activation": "relu2",
    "qk_norm": True,
    "tie_embeddings": False,
    "value_embeddings": True,
    "residual_scales": True,
    "logit_softcap": 15.0,
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({}, {"num_experts": 0}),
    "mixture": ({"num_kv_heads": 2}, {"num_experts": 4}),
    "three of five": ({"num_kv_heads": 1, "qk_norm": True}, {"num_experts": 5, "top_k": 3}),
    "every second": ({"tie_embeddings": False}, {"num_experts": 4, "every_n_layers": 2}),
    "GPT-2": (GPT2, {"num_experts": 0}),
    "GPT-2 with experts": (GPT2, {"num_experts": 4}),
    "relu": ({"activation": "relu"}, {"num_experts": 0}),
    "nanochat": (NANOCHAT, {"num_experts": 0}),
    "nanochat with experts": (NANOCHAT, {"num_experts": 4}),
}


@pytest.fixture(params=MODELS, ids=MODELS)
def run_and_decoder(request) -> tuple[RunConfig, Decoder]:
    model, moe = MODELS[request.param]
    sizes = {"hidden_size": 40, "num_layers": 3, "num_heads": 4, "intermediate_size": 24, "init_std": 0.2}
    run = RunConfig.model_validate(
        {
            "model": {**sizes, **model},
            "moe": moe,
            "data": {"sequence_length": 24},
            "tokenizer": {"vocab_size": 50},
        }
    )
    decoder = Decoder(run)
    init_parameters(decoder, run.model, 3)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return run, decoder.eval()


@torch.no_grad()
def test_every_step_has_the_logits_of_the_whole_text(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    tokens = torch.randint(50, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    expected_SV = decoder(torch.tensor([tokens]))[0][0].numpy()
    packed = PackedDecoder(decoder, run)
    found = [packed.begin(tokens[:5], 24).numpy().copy(), *(packed.step(token).numpy().copy() for token in tokens[5:])]
    np.testing.assert_allclose(np.stack(found), expected_SV[4:], rtol=0, atol=2e-5 * abs(expected_SV).max())
    # The parameters, which are views now, have kept their values.
    assert np.array_equal(decoder(torch.tensor([tokens]))[0][0].numpy(), expected_SV)


def negated(decoder: Decoder) -> None:
    decoder.final_norm.weight.mul_(-1)


def replaced(decoder: Decoder) -> None:
    decoder.blocks[1].ffn_norm.weight = torch.nn.Parameter(torch.full((40,), 2.0))


def loaded(decoder: Decoder) -> None:
    decoder.load_state_dict({name: 0.5 * value for name, value in decoder.state_dict().items()})


def behind_its_back(decoder: Decoder) -> None:
    for parameter in decoder.parameters():
        parameter.data.mul_(1.5)


def shared(decoder: Decoder) -> None:
    decoder.share_memory()


def rounded(decoder: Decoder) -> None:
    decoder.bfloat16().float()


@torch.no_grad()
@pytest.mark.parametrize("change", [negated, replaced, loaded, behind_its_back, shared, rounded])
def test_weights_that_change_between_two_stories_are_seen(run_and_decoder, change):
    """Compiled code follows changed weights: torch may have freed the memory that it read before."""
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    tokens = [7, 3, 9, 30, 2, 11]
    packed = PackedDecoder(decoder, run)
    before_V = packed.begin(tokens, 24).numpy().copy()
    change(decoder)
    for stepper in (packed, packed.another(), packed):
        expected_SV = decoder(torch.tensor([[*tokens, 4]]))[0][0].numpy()
        found = [stepper.begin(tokens, 24).numpy().copy(), stepper.step(4).numpy()]
        np.testing.assert_allclose(np.stack(found), expected_SV[-2:], rtol=0, atol=2e-5 * abs(expected_SV).max())
    assert (change is shared) == np.allclose(before_V, expected_SV[-2], rtol=0, atol=2e-5 * abs(expected_SV).max())


@torch.no_grad()
def test_a_copy_has_weights_of_its_own(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    packed = PackedDecoder(decoder, run)
    before_V = packed.begin([7, 3, 9], 24).numpy().copy()
    other_decoder, other = copy.deepcopy((decoder, packed))
    other_decoder.embedding.weight.mul_(2)
    expected_V = other_decoder(torch.tensor([[7, 3, 9]]))[0][0, -1].numpy()
    np.testing.assert_allclose(
        other.begin([7, 3, 9], 24).numpy(), expected_V, rtol=0, atol=2e-5 * abs(expected_V).max()
    )
    np.testing.assert_array_equal(packed.begin([7, 3, 9], 24).numpy(), before_V)
    assert abs(expected_V - before_V).max() > 0.01


@torch.no_grad()
def test_weights_that_move_within_a_story_are_followed(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    packed = PackedDecoder(decoder, run)
    packed.begin([7, 3, 9], 24)
    other = packed.another()
    other.begin([7, 3, 9], 24)
    decoder.share_memory()
    expected_SV = decoder(torch.tensor([[7, 3, 9, 4]]))[0][0].numpy()
    for one in (packed, other):  # the first has already laid them out again for the second
        np.testing.assert_allclose(one.step(4).numpy(), expected_SV[-1], rtol=0, atol=2e-5 * abs(expected_SV).max())


@torch.no_grad()
def test_a_new_prompt_begins_anew(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    packed = PackedDecoder(decoder, run)
    first = [packed.begin([1, 2, 3], 10).clone(), packed.step(4).clone()]
    packed.begin([9, 8], 20)
    packed.step(7)
    again = [packed.begin([1, 2, 3], 10).clone(), packed.step(4).clone()]
    assert torch.equal(torch.stack(first), torch.stack(again))


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 5}, {"seed": 6, "top_k": 10, "top_p": 0.9}])
def test_the_same_tokens_as_with_torch(run_and_decoder, sampling):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    config = SamplingConfig(**sampling)
    expected = list(generate_ids(decoder, run, [1, 2, 3], config, None))
    assert list(generate_ids(decoder, run, [1, 2, 3], config, None, stepper=PackedDecoder(decoder, run))) == expected
    assert len(expected) == 24 - 3 + 1


def test_the_same_tokens_beyond_the_end_of_the_context(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    if decoder.position_embedding is not None:
        pytest.skip("learned positions do not slide")
    config = SamplingConfig(seed=5, max_new_tokens=60, past_context="slide")
    expected = list(generate_ids(decoder, run, [1, 2, 3], config, None))
    assert list(generate_ids(decoder, run, [1, 2, 3], config, None, stepper=PackedDecoder(decoder, run))) == expected
    assert len(expected) == 60


@torch.no_grad()
@pytest.mark.parametrize("number", [2, 3, 7])
def test_several_threads_give_the_same(run_and_decoder, number, monkeypatch):
    from storyteller_ds.generation.fast import packed, team

    run, decoder = run_and_decoder
    several = team.Threads(number)
    monkeypatch.setattr(packed, "threads", lambda: several)
    monkeypatch.setattr(packed, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(packed, "_TOGETHER", 4)
    tokens = torch.randint(50, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    expected_SV = decoder(torch.tensor([tokens]))[0][0].numpy()
    text = packed.PackedDecoder(decoder, run)
    found = [text.begin(tokens[:9], 24).numpy().copy(), *(text.step(token).numpy().copy() for token in tokens[9:])]
    np.testing.assert_allclose(np.stack(found), expected_SV[8:], rtol=0, atol=2e-5 * abs(expected_SV).max())


@torch.no_grad()
@pytest.mark.parametrize("together", [1, 5, 128])
def test_texts_of_any_lengths_at_once(run_and_decoder, together, monkeypatch):
    from storyteller_ds.generation.fast import packed

    run, decoder = run_and_decoder
    monkeypatch.setattr(packed, "_TOGETHER", together)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(50, (length,), generator=generator).tolist() for length in (3, 1, 12, 5, 5, 7, 2)]
    texts = packed.PackedDecoder(decoder, run).texts()
    found = [texts.begin(prompts, 24).clone()]
    for number in range(1, 4):
        if number == 3:
            texts.keep([0, 2, 5])
            prompts = [prompts[0], prompts[2], prompts[5]]
        ids = torch.randint(50, (len(prompts),), generator=generator).tolist()
        found.append(texts.step(ids).clone())
        prompts = [[*prompt, i] for prompt, i in zip(prompts, ids, strict=True)]
    expected = torch.stack([decoder(torch.tensor([prompt]))[0][0, -1] for prompt in prompts])
    torch.testing.assert_close(found[-1], expected, rtol=0, atol=float(2e-5 * expected.abs().max()))
    assert [len(logits) for logits in found] == [7, 7, 7, 3]


def test_a_text_that_is_over_goes_on_with_the_others(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    texts = PackedDecoder(decoder, run).texts()
    texts.begin([[1] * 24, [2]], 24)
    for i in range(23):
        last = texts.step([3, i])
    with torch.no_grad():
        expected = decoder(torch.tensor([[2, *range(23)]]))[0][0, -1]
    torch.testing.assert_close(last[1], expected, rtol=0, atol=float(2e-5 * expected.abs().max()))


@torch.no_grad()
def test_its_memory_grows_with_the_text(run_and_decoder):
    from storyteller_ds.generation.fast.packed import PackedDecoder

    run, decoder = run_and_decoder
    tokens = torch.randint(50, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    expected_SV = decoder(torch.tensor([tokens]))[0][0].numpy()
    packed = PackedDecoder(decoder, run)
    packed.begin(tokens[:2], 3)
    found = [packed.step(token).numpy().copy() for token in tokens[2:]]
    np.testing.assert_allclose(np.stack(found), expected_SV[2:], rtol=0, atol=2e-5 * abs(expected_SV).max())


def test_an_exponential_is_as_exact_as_its_argument():
    from storyteller_ds.generation.fast import step

    @step.compiled()
    def of_all(x, out):
        for i in range(x.size):
            out[i] = step._exp(x[i])

    x = np.linspace(-87, 87, 1_000_001).astype(np.float32)
    found = np.empty_like(x)
    of_all(x, found)
    expected = np.exp(x.astype(np.float64))
    assert np.all(np.abs(found / expected - 1) <= 1e-7 * (1 + np.abs(x)))
    x = np.array([-1e30, 1e30, 0], np.float32)
    of_all(x, found[:3])
    assert 0 < found[0] < 2e-38
    assert 5e37 < found[1] < np.inf
    assert found[2] == 1


def test_a_member_that_does_not_come_lets_the_others_go():
    from storyteller_ds.generation.fast import step, team

    @step.compiled(nogil=True)
    def meet_often(member):
        meeting = 1
        for _ in range(1000):
            meeting = step._meet(member, meeting)
        return meeting

    several = team.Threads(3)
    met = []

    def part(member):
        if member.thread == 0 and not met:
            met.append(0)
            raise KeyboardInterrupt
        met.append(meet_often(member))

    with pytest.raises(KeyboardInterrupt):
        several.run(part, 3)
    met[:] = [0]
    several.run(part, 3)
    assert met == [0, 1001, 1001, 1001]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_has_threads_of_its_own():
    from storyteller_ds.generation.fast import team

    def both():
        came = []
        team.threads().run(lambda member: came.append(member.thread), team.threads().number)
        return sorted(came) == list(range(team.threads().number))

    assert both()
    child = os.fork()
    if not child:
        os._exit(0 if both() else 1)
    assert os.waitpid(child, 0)[1] == 0
