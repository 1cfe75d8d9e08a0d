"""The distribution of sampled tokens."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from storyteller_ds.generation.sampling import SamplingConfig, sample

LOGITS_V = torch.tensor([0.3, 2.0, -1.0, 1.1, 0.9, -0.2, 1.6, 0.0])
DRAWS = 2000
CHI_SQUARE_999 = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32]
"""Quantile 0.999 for 0 to 7 degrees of freedom (0: there is nothing to vary)."""


def draw(logits_V: Tensor, config: SamplingConfig, draws: int = DRAWS) -> list[int]:
    """How often each token comes."""
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
    # Tokens that were cut never come, and every other one does.
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
