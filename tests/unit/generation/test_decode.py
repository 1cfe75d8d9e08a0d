"""Generation with the KV cache matches recomputing the whole prefix for every token."""

import itertools

import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import UserError
from storyteller_ds.generation.decode import generate_ids
from storyteller_ds.generation.kv_cache import make_caches
from storyteller_ds.generation.sampling import SamplingConfig, sample
from storyteller_ds.model.decoder import Decoder
from tests.support.tolerances import SIMPLE, assert_within

PROMPT = [3, 1, 4, 1, 5]
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)
every_kind = pytest.mark.parametrize("kind", ["dense rope", "dense learned", "mixture rope", "mixture learned"])


@torch.no_grad()
def recomputed(decoder: Decoder, prompt: list[int], config: SamplingConfig) -> list[int]:
    """The ids, computed without a cache, as long as the prefix fits into the context."""
    generator = torch.Generator().manual_seed(config.seed)
    ids = list(prompt)
    while len(ids) <= decoder.context_length and len(ids) < len(prompt) + config.max_new_tokens:
        logits_BSV, _ = decoder(torch.tensor([ids]))
        ids.append(sample(logits_BSV[0, -1], config, generator))
    return ids[len(prompt) :]


def generated(model: tuple[Decoder, RunConfig], prompt: list[int], config: SamplingConfig, stop=None) -> list[int]:
    return list(generate_ids(*model, prompt, config, stop))


@every_kind
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"temperature": 1.0, "seed": 5}, {"temperature": 1.3, "seed": 6, "top_k": 7, "top_p": 0.9}],
    ids=str,
)
@pytest.mark.parametrize("prompt", [PROMPT, [9]], ids=["5 tokens", "1 token"])
def test_the_cache_changes_nothing(poisoned_memory, make_model, kind, settings, prompt):
    model = make_model(kind)
    config = SamplingConfig(max_new_tokens=15, **settings)
    ids = generated(model, prompt, config)
    assert ids == recomputed(model[0], prompt, config)
    assert len(ids) == 15
    assert len(set(ids)) > 3, "a model that repeats itself would hide a wrong cache"


@every_kind
@pytest.mark.parametrize("chunks", [[5, 6], [1] * 11, [2, 1, 4, 4], [10, 1], [1, 10]], ids=str)
def test_a_prompt_in_chunks_is_one_pass(poisoned_memory, make_model, kind, chunks):
    decoder, run = make_model(kind)
    token_BS = torch.randint(41, (2, 11), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole_BSV, _ = decoder(token_BS)
        caches = make_caches(run, 2, 13, torch.float32, torch.device("cpu"))
        starts = itertools.accumulate([0, *chunks[:-1]])
        pieces = zip(token_BS.split(chunks, dim=1), starts, strict=True)
        chunked_BSV = torch.cat([decoder(piece, caches, start)[0] for piece, start in pieces], dim=1)
        assert_within(chunked_BSV, whole_BSV, SIMPLE)
        # The position matters: the same chunk at another start position gives different logits.
        caches = make_caches(run, 2, 13, torch.float32, torch.device("cpu"))
        decoder(token_BS[:, :5], caches, 0)
        with pytest.raises(AssertionError, match="difference"):
            assert_within(decoder(token_BS[:, 5:], caches, 7)[0], whole_BSV[:, 5:], SIMPLE)


def test_the_seed_decides(make_model):
    model = make_model("mixture rope")
    stories = [generated(model, PROMPT, SamplingConfig(temperature=1.0, seed=s)) for s in (1, 1, 2, 3)]
    assert stories[0] == stories[1]
    assert len({tuple(story) for story in stories}) == 3


def test_the_global_random_state_is_neither_read_nor_moved(make_model):
    model = make_model("mixture rope")
    torch.manual_seed(0)
    first = generated(model, PROMPT, SamplingConfig(seed=4))
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert generated(model, PROMPT, SamplingConfig(seed=4)) == first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_stop_id_ends_and_is_not_said(make_model):
    model = make_model("dense rope")
    endless = generated(model, PROMPT, GREEDY)
    stop = endless[4]
    assert generated(model, PROMPT, GREEDY, stop) == endless[: endless.index(stop)]
    absent = next(i for i in range(41) if i not in endless)
    assert generated(model, PROMPT, GREEDY, absent) == endless


@every_kind
def test_the_end_of_the_context_ends_the_story(make_model, kind):
    model = make_model(kind)
    config = SamplingConfig(temperature=1.0, max_new_tokens=1000)
    for length in (1, 20, 23):
        ids = generated(model, [2] * length, config)
        assert ids == recomputed(model[0], [2] * length, config)
        # The last id is the one that follows a full context.
        assert len(ids) == 24 - length + 1


@pytest.mark.parametrize("count", [1, 2, 18, 19, 20, 21])
def test_no_more_than_was_asked_for(make_model, count):
    # A prompt of 5 in a context of 24 leaves room for 20.
    ids = generated(make_model("dense learned"), PROMPT, SamplingConfig(max_new_tokens=count))
    assert len(ids) == min(count, 20)


@pytest.mark.parametrize("length", [24, 25, 100])
def test_a_prompt_too_long_is_the_users_error(make_model, length):
    with pytest.raises(UserError, match=rf"{length} tokens .* context 24; shorten the prompt"):
        generated(make_model("dense rope"), [1] * length, GREEDY)


def test_the_reader_keeps_gradients_on(make_model):
    ids = generate_ids(*make_model("dense rope"), PROMPT, GREEDY, None)
    next(ids)
    assert torch.is_grad_enabled()


# Beyond the end of the context


@torch.no_grad()
def recomputed_windows(decoder: Decoder, prompt: list[int], config: SamplingConfig) -> list[int]:
    """Like `recomputed`, but a window that exceeds the context is cut to its last `context_length // 2` ids."""
    generator = torch.Generator().manual_seed(config.seed)
    window, ids = list(prompt), list[int]()
    while len(ids) < config.max_new_tokens:
        if len(window) > decoder.context_length:
            window = window[len(window) - decoder.context_length // 2 :]
        logits_BSV, _ = decoder(torch.tensor([window]))
        ids.append(sample(logits_BSV[0, -1], config, generator))
        window.append(ids[-1])
    return ids


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.1, "seed": 3}], ids=str)
@pytest.mark.parametrize("kind", ["dense rope", "mixture rope", "mixture like nanochat"])
@pytest.mark.parametrize("length", [1, 5, 23])
def test_a_story_slides_over_the_end_of_the_context(poisoned_memory, make_model, kind, settings, length):
    model = make_model(kind)
    config = SamplingConfig(max_new_tokens=70, past_context="slide", **settings)
    ids = generated(model, [2] * length, config)
    assert ids == recomputed_windows(model[0], [2] * length, config)
    assert len(ids) == 70
    stopped = generated(model, [2] * length, config.model_copy(update={"past_context": "stop"}))
    assert stopped == ids[: 24 - length + 1], "until there it is the same story"


def test_a_wrong_window_is_seen(make_model):
    decoder, run = make_model("mixture rope")
    config = SamplingConfig(max_new_tokens=70, past_context="slide", temperature=1.1)
    decoder.context_length = 20
    short = generated((decoder, run), PROMPT, config)
    decoder.context_length = 24
    assert generated((decoder, run), PROMPT, config) != short


def test_what_a_model_cannot_do_is_refused(make_model):
    slide = SamplingConfig(max_new_tokens=5, past_context="slide")
    with pytest.raises(UserError, match=r"past_context=slide gives tokens new positions.*use past_context=stop"):
        generated(make_model("mixture learned"), PROMPT, slide)
    with pytest.raises(UserError, match="logit_bias has the id 41; those of this model end at 40"):
        generated(make_model("mixture rope"), PROMPT, SamplingConfig(logit_bias={40: 1.0, 41: 1.0}))


# Penalties


@torch.no_grad()
def test_penalties_count_what_has_been_said(make_model):
    model = make_model("mixture rope")
    config = SamplingConfig(temperature=0, max_new_tokens=15, repetition_penalty=1.6, frequency_penalty=1.5)
    ids = generated(model, PROMPT, config)
    wanted: list[int] = []
    for _ in range(15):
        logits_BSV, _ = model[0](torch.tensor([PROMPT + wanted]))
        wanted.append(sample(logits_BSV[0, -1], config, torch.Generator(), PROMPT, wanted))
    assert ids == wanted
    assert ids != generated(model, PROMPT, GREEDY)[:15]


def test_the_end_is_not_less_likely_for_standing_before_the_prompt(make_model):
    model = make_model("mixture rope")
    penalized = SamplingConfig(temperature=0, max_new_tokens=1, repetition_penalty=100)
    # Prompts of two ids that the model continues with the first of them.
    first = SamplingConfig(temperature=0, max_new_tokens=1)
    prompts = [[a, b] for a in range(41) for b in range(0, 41, 4) if generated(model, [a, b], first) == [a]]
    assert prompts
    for prompt in prompts:
        assert generated(model, prompt, penalized, stop=prompt[0]) == []
        assert generated(model, prompt, penalized) != [prompt[0]]
