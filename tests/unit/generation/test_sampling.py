"""The distribution of sampled tokens."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from storyteller_ds.errors import UserError
from storyteller_ds.generation.sampling import SamplingConfig, distribution, sample, sampling_config

LOGITS_V = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.9, -0.2, 1.6, 0.0])
DRAWS = 2000
CHI_SQUARE_999 = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32]
"""The 0.999 quantile for 0 to 7 degrees of freedom (0: nothing varies)."""


def draw(logits_V: Tensor, config: SamplingConfig, draws: int = DRAWS) -> list[int]:
    """How often each token is drawn."""
    generator = torch.Generator().manual_seed(config.seed)
    counts = [0] * len(logits_V)
    for _ in range(draws):
        counts[sample(logits_V, config, generator)] += 1
    return counts


def expected(logits_V: Tensor, config: SamplingConfig) -> list[float]:
    """Probabilities by the definition: temperature, then top k, then the smallest set that reaches top p."""
    weight = [math.exp(logit / config.temperature) for logit in logits_V.tolist()]
    order = sorted(range(len(weight)), key=lambda i: (-weight[i], i))
    if config.top_k:
        order = order[: config.top_k]
    total = sum(weight[i] for i in order)
    sizes = [n for n in range(1, len(order) + 1) if sum(weight[i] for i in order[:n]) / total >= config.top_p - 1e-9]
    kept = order[: min(sizes)]
    total = sum(weight[i] for i in kept)
    return [weight[i] / total if i in kept else 0.0 for i in range(len(weight))]


def chi_square(counts: list[int], probs: list[float]) -> tuple[float, int]:
    """Statistic and degrees of freedom."""
    pairs = [(count, prob * sum(counts)) for count, prob in zip(counts, probs, strict=True) if prob]
    return sum((count - wanted) ** 2 / wanted for count, wanted in pairs), len(pairs) - 1


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_k": 100},
        {"temperature": 1.0, "top_p": 0.05},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.95},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 4, "seed": 3},
        {"temperature": 3.0, "top_p": 0.6, "top_k": 7, "seed": 4},
    ],
    ids=str,
)
def test_frequencies(settings):
    config = SamplingConfig(**settings)
    counts, probs = draw(LOGITS_V, config), expected(LOGITS_V, config)
    # Tokens that were cut are never drawn, and all others are.
    assert [count > 0 for count in counts] == [prob > 0 for prob in probs]
    statistic, freedom = chi_square(counts, probs)
    assert statistic <= CHI_SQUARE_999[freedom]


def test_the_bound_sees_a_wrong_temperature():
    counts = draw(LOGITS_V, SamplingConfig(temperature=1.0))
    statistic, freedom = chi_square(counts, expected(LOGITS_V, SamplingConfig(temperature=1.3)))
    assert statistic > CHI_SQUARE_999[freedom]


def test_top_p_of_random_distributions_keeps_the_smallest_sufficient_set():
    torch.manual_seed(0)
    for trial in range(20):
        logits_V, top_p = torch.randn(6), 0.1 + 0.04 * trial
        config = SamplingConfig(temperature=1.0, top_p=top_p)
        probs = expected(logits_V, config)
        counts = draw(logits_V, config, draws=200)
        assert all(prob > 0 for count, prob in zip(counts, probs, strict=True) if count)
        # Each kept token is missed by 200 draws with a probability of at most (1 - p)^200.
        assert all(count > 0 for count, prob in zip(counts, probs, strict=True) if prob > 0.05)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 1}, {"top_k": 1, "temperature": 5.0}], ids=str)
def test_one_choice_is_the_most_probable(settings):
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        logits_V = torch.randn(300)
        assert sample(logits_V, SamplingConfig(**settings), generator) == int(logits_V.argmax())


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_a_tie_goes_to_the_lower_id(settings):
    logits_V = torch.tensor([0.0, 3.0, 1.0, 3.0, 3.0])
    assert sample(logits_V, SamplingConfig(**settings), torch.Generator()) == 1


def test_a_tie_is_not_made_larger_by_top_k():
    counts = draw(torch.zeros(5), SamplingConfig(temperature=1.0, top_k=2), draws=200)
    assert counts[2:] == [0, 0, 0]
    assert min(counts[:2]) > 0


@pytest.mark.parametrize(("settings", "last"), [({}, 2), ({"top_k": 2}, 2), ({"top_p": 0.7}, 2), ({"min_p": 0.9}, 1)])
def test_the_last_number_falls_on_a_token_that_may_come(monkeypatch, settings, last):
    """A token without weight is never drawn, even if the largest random number times the sum rounds to the sum."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1 - 2**-53, dtype=torch.float64))
    logits_V = torch.tensor([0.0, 1.0, 0.5, -math.inf, -math.inf])
    assert sample(logits_V, SamplingConfig(temperature=1, **settings), torch.Generator()) == last


def test_masked_tokens_never_come():
    logits_V = torch.tensor([0.0, -math.inf, 0.0, -math.inf])
    counts = draw(logits_V, SamplingConfig(temperature=1.0), draws=200)
    assert counts[1] == counts[3] == 0


def test_bf16_logits_are_sampled_in_fp32():
    logits_V = LOGITS_V.bfloat16()
    config = SamplingConfig(temperature=0.7)
    assert draw(logits_V, config, 100) == draw(logits_V.float(), config, 100)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_new_tokens": 0}, {"top": 1}],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ValidationError):
        SamplingConfig(**settings)


# The same story for the same seed


def by_plain_definition(logits_V: Tensor, config: SamplingConfig, generator: torch.Generator) -> int:
    """The first token at which the running sum of the weights exceeds a random fraction of their total."""
    order = list(range(len(logits_V)))
    if config.top_k or config.top_p < 1:
        order = torch.sort(logits_V, descending=True, stable=True).indices.tolist()
    weights = [math.exp(logits_V[i].item() / config.temperature) for i in order][: config.top_k or None]
    mass, before = sum(weights), 0.0
    for place, weight in enumerate(weights):
        weights[place] = weight if before < config.top_p * mass else 0.0
        before += weight
    number = torch.rand((), dtype=torch.float64, generator=generator).item() * sum(weights)
    return order[next(place for place, end in enumerate(itertools.accumulate(weights)) if end > number)]


@pytest.mark.parametrize("vocabulary", [1, 7, 512, 4096])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "top_k": 40}, {"top_p": 0.9}], ids=str)
def test_the_draws_are_those_of_the_plain_definition(settings, vocabulary):
    config = SamplingConfig(**settings)
    data = torch.Generator().manual_seed(vocabulary)
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    drawn = set()
    for trial in range(150):
        logits_V = torch.randn(vocabulary, generator=data) * (0.1, 1.0, 4.0)[trial % 3]
        if trial % 2:  # many are equal, and some are -0.0
            logits_V = (logits_V * 2).round() / 2
        if trial % 5 == 0:
            logits_V[::3][1:] = -math.inf
        chosen = sample(logits_V, config, ours)
        assert chosen == by_plain_definition(logits_V, config, theirs)
        drawn.add(chosen)
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert len(drawn) > min(vocabulary - 1, 20)


def test_the_order_is_that_of_a_stable_sort():
    data = torch.Generator().manual_seed(3)
    for trial in range(50):
        logits_V = (torch.randn(777, generator=data) * 10.0 ** (trial % 9 - 4)).round(decimals=2)
        logits_V[:6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e-42, -1e-42])
        found_N, _ = distribution(logits_V, SamplingConfig(temperature=1, top_k=777))
        assert torch.equal(found_N, torch.sort(logits_V, descending=True, stable=True).indices)
        assert len(logits_V.unique()) < len(logits_V), "there are ties"


# Bias, penalties and min_p

PROMPT, SAID = [1, 4, 4], [6, 2, 6, 6]


def adjusted(logits_V: Tensor, config: SamplingConfig) -> list[float]:
    """Logits after bias and penalties, computed id by id."""
    result = []
    for i, logit in enumerate(logits_V.tolist()):
        logit += config.logit_bias.get(i, 0)
        if i in PROMPT + SAID:
            logit = logit * config.repetition_penalty if logit < 0 else logit / config.repetition_penalty
        logit -= config.frequency_penalty * SAID.count(i) + (config.presence_penalty if i in SAID else 0)
        result.append(logit)
    return result


def by_definition(logits_V: Tensor, config: SamplingConfig) -> list[float]:
    prob = expected(torch.tensor(adjusted(logits_V, config), dtype=torch.float64), config)
    kept = [each if each >= config.min_p * max(prob) else 0.0 for each in prob]
    return [each / sum(kept) for each in kept]


def by_us(logits_V: Tensor, config: SamplingConfig) -> list[float]:
    id_N, prob_N = distribution(logits_V, config, PROMPT, SAID)
    return torch.zeros(len(logits_V)).scatter(0, id_N, prob_N / prob_N.sum()).tolist()


ALL = {
    "logit_bias": {0: 3.0, 6: -1.5},
    "repetition_penalty": 1.4,
    "presence_penalty": 0.4,
    "frequency_penalty": -0.3,
    "temperature": 1.7,
    "top_k": 7,
    "top_p": 0.93,
    "min_p": 0.15,
}


@pytest.mark.parametrize(
    "settings",
    [
        *({name: value} for name, value in ALL.items()),
        {"min_p": 1.0},
        {"min_p": 0.1, "temperature": 2.0},
        {"repetition_penalty": 0.5},
        {"presence_penalty": -2.0, "top_k": 2},
        ALL,
    ],
    ids=str,
)
def test_every_filter_is_what_its_definition_says(settings):
    data, config = torch.Generator().manual_seed(5), SamplingConfig(**settings)
    changed = False
    for _ in range(20):
        logits_V = torch.randn(9, generator=data) * 2
        before_V = logits_V.clone()
        ours = by_us(logits_V, config)
        assert ours == pytest.approx(by_definition(logits_V, config), abs=1e-6)
        assert torch.equal(logits_V, before_V)
        changed |= ours != by_us(logits_V, SamplingConfig(temperature=config.temperature))
    assert changed or settings.keys() == {"temperature"}


def test_transformers_agrees():
    pytest.importorskip("transformers")
    from transformers.generation import logits_process as theirs

    data, config = torch.Generator().manual_seed(6), SamplingConfig(**ALL)
    processors = [
        theirs.SequenceBiasLogitsProcessor({(i,): bias for i, bias in config.logit_bias.items()}),
        theirs.RepetitionPenaltyLogitsProcessor(config.repetition_penalty),
        lambda _, scores: scores - penalty_V,  # not in transformers
        theirs.TemperatureLogitsWarper(config.temperature),
        theirs.TopKLogitsWarper(config.top_k),
        theirs.TopPLogitsWarper(config.top_p),
        theirs.MinPLogitsWarper(config.min_p),
    ]
    penalty_V = torch.tensor([SAID.count(i) * -0.3 + (0.4 if i in SAID else 0) for i in range(12)])
    kept = set()
    for _ in range(50):
        logits_V = torch.randn(12, generator=data) * 2
        scores_BV, id_BS = logits_V[None].clone(), torch.tensor([PROMPT + SAID])
        for process in processors:
            scores_BV = process(id_BS, scores_BV)
        theirs_V = scores_BV.softmax(dim=-1)[0].tolist()
        assert by_us(logits_V, config) == pytest.approx(theirs_V, abs=1e-6)
        kept.add(sum(prob > 0 for prob in theirs_V))
    assert len(kept) > 3, "the filters cut at different places"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temperature_0_takes_the_largest_after_bias_and_penalties(dtype):
    data, config = torch.Generator().manual_seed(7), SamplingConfig(**(ALL | {"temperature": 0, "top_k": 0}))
    different = 0
    for _ in range(50):
        logits_V = torch.randn(9, generator=data).to(dtype)
        wanted = adjusted(logits_V, config)
        assert sample(logits_V, config, torch.Generator(), PROMPT, SAID) == wanted.index(max(wanted))
        different += wanted.index(max(wanted)) != int(logits_V.argmax())
    assert different > 5


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"min_p": 1.1}, "min_p=1.1: input should be less than or equal to 1"),
        ({"min_p": -0.1}, "min_p=-0.1: "),
        ({"repetition_penalty": 0}, "repetition_penalty=0: "),
        ({"presence_penalty": 2.5}, "presence_penalty=2.5: "),
        ({"frequency_penalty": math.nan}, "frequency_penalty=nan: "),
        ({"temperature": math.inf}, "temperature=inf: "),
        ({"temperature": 1e-40}, "temperature=1e-40: so close to 0 nothing is left to chance; use 0"),
        ({"logit_bias": {-1: 2.0}}, "logit_bias"),
        ({"logit_bias": {1: math.inf}}, "logit_bias.1=inf: "),
        ({"stop": [""]}, "stop.0='': "),
        ({"stop": "end"}, "stop='end': should be a list"),
        ({"past_context": "slide"}, "past_context='slide': a story that .* for ever; set max_new_tokens"),
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_named(settings, reason):
    with pytest.raises(UserError, match=f"^--{reason}"):
        sampling_config(settings, "--")


def test_no_setting_in_its_range_overflows():
    logits_V = torch.tensor([300.0, -300.0, 299.0, 0.0])
    for settings in (
        {"temperature": 1e-6},
        {"repetition_penalty": 0.01},
        {"temperature": 1e-6, "repetition_penalty": 100},
    ):
        assert sample(logits_V, SamplingConfig(**settings), torch.Generator(), [0, 1, 2, 3]) == 0
