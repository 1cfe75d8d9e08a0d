"""Choosing the next token from the model's distribution."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor

from storyteller_ds.errors import UserError
from storyteller_ds.validation_errors import first_problem

_LOWEST_TEMPERATURE = 1e-6
"""Below it the quotients overflow."""


class SamplingConfig(BaseModel):
    """How a story is continued."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(0.8, ge=0)
    """Logits are divided by it; 0: always the most probable token."""
    top_k: int = Field(0, ge=0)
    """Only the k most probable tokens; 0: all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the most probable tokens that together reach this probability (nucleus, Holtzman et al. 2020); 1: all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Only tokens with at least this part of the probability of the most probable (Nguyen et al. 2024); 0: all."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Logits of tokens of the prompt and the story are divided by it, negative ones multiplied (CTRL, Keskar et al.
    2019, sec. 4.1); 1: none."""
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens that the story has, the prompt left out (OpenAI's API); 0: none."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """The same, once for each time that the story has the token."""
    logit_bias: Mapping[Annotated[int, Field(ge=0)], float] = {}
    """Token id: what is added to its logit; -100 all but forbids it."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts; the story ends before the first of them."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest continuation (tokens); None: as long as the context has room."""
    past_context: Literal["stop", "slide"] = "stop"
    """At the end of the model's context: the story ends, or goes on from the last half of the context, which takes
    rotary positions. Stories of a model that never ends one would then have no end: slide needs max_new_tokens."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Start of the random stream; the same seed gives the same story."""

    @field_validator("temperature")
    @classmethod
    def _is_usable(cls, temperature: float) -> float:
        if 0 < temperature < _LOWEST_TEMPERATURE:
            raise ValueError("so close to 0 nothing is left to chance; use 0")
        return temperature

    @field_validator("past_context")
    @classmethod
    def _comes_to_an_end(cls, past_context: str, others: ValidationInfo) -> str:
        if past_context == "slide" and others.data.get("max_new_tokens") is None:
            raise ValueError("a story that the model never ends would go on for ever; set max_new_tokens, too")
        return past_context

    def of_story(self, number: int) -> Self:
        """The same with another random stream, for story `number` of several; that of story 0 is this one's."""
        return self.model_copy(update={"seed": (self.seed + number) % 2**63})


def sampling_config(settings: Mapping[str, Any], prefix: str = "") -> SamplingConfig:
    """A SamplingConfig with these settings.

    Raises:
        UserError: there is no such setting, or it is out of its range; its name gets the prefix.
    """
    try:
        return SamplingConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{prefix}{first_problem(error)}") from None


def sample(
    logits_V: Tensor,
    config: SamplingConfig,
    generator: torch.Generator,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
) -> int:
    """One token id for the next position; with temperature 0 that of the largest logit after bias and penalties.

    Args:
        logits_V: [V], unchanged.
        config: sampling.
        generator: of the CPU; not used with temperature 0.
        prompt: ids that the repetition penalty takes for said.
        generated: ids that the model has said, for all penalties.
    """
    if config.temperature == 0:
        return int(_penalised(logits_V, config, prompt, generated).argmax())
    id_N, prob_N = distribution(logits_V, config, prompt, generated)
    return int(id_N[_drawn(prob_N, generator)])


def distribution(
    logits_V: Tensor, config: SamplingConfig, prompt: Sequence[int] = (), generated: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Ids [N], int64, and the weight of each in the draw [N], fp32, on the CPU; sorted where some are left out.

    In the order of transformers: logit_bias, repetition_penalty, then presence_penalty and frequency_penalty, which it
    does not have, temperature, top_k, top_p, min_p. The arguments are those of `sample`; temperature is not 0.
    """
    # On the CPU in fp32, so that a seed means the same story on every device.
    logits_V = _penalised(logits_V, config, prompt, generated).float().cpu() / config.temperature
    if not config.top_k and config.top_p == 1 and not config.min_p:
        return torch.arange(len(logits_V)), torch.softmax(logits_V, dim=-1)
    id_N = _descending(logits_V)
    if config.top_k:
        id_N = id_N[: config.top_k]
    prob_N = torch.softmax(logits_V[id_N], dim=-1)
    if config.top_p < 1:
        # A token stays if those before it have not yet reached top_p; the first always stays.
        before_N = prob_N.cumsum(dim=-1) - prob_N
        prob_N = torch.where(before_N < config.top_p, prob_N, 0.0)
    if config.min_p:
        prob_N = torch.where(prob_N >= config.min_p * prob_N[0], prob_N, 0.0)
    return id_N, prob_N


def _drawn(prob_N: Tensor, generator: torch.Generator) -> int:
    """The place that one uniform number falls on, where each has the width of its weight.

    (torch.multinomial draws a number for each place, which takes as long as a step of a small model.)
    """
    end_N = prob_N.numpy().cumsum(dtype=np.float64)
    number = torch.rand((), dtype=torch.float64, generator=generator).item() * end_N[-1]
    # At the very end rounding could pass the last place that has a width.
    return min(int(end_N.searchsorted(number, side="right")), int(end_N.searchsorted(end_N[-1])))


def _penalised(logits_V: Tensor, config: SamplingConfig, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    """fp32 [V] on the CPU with bias and penalties; where there are none, the logits as they are."""
    repeats = config.repetition_penalty != 1
    counts = bool(config.presence_penalty or config.frequency_penalty) and len(generated) > 0
    if not (config.logit_bias or repeats or counts):
        return logits_V
    logits_V = logits_V.float().cpu().clone()
    for i, bias in config.logit_bias.items():
        logits_V[i] += bias
    if repeats:
        seen_N = torch.tensor([*prompt, *generated], dtype=torch.int64)
        logit_N, penalty = logits_V[seen_N], config.repetition_penalty
        logits_V[seen_N] = torch.where(logit_N < 0, logit_N * penalty, logit_N / penalty)
    if counts:
        said_N, count_N = torch.tensor(generated).unique(return_counts=True)
        logits_V[said_N] -= config.presence_penalty + config.frequency_penalty * count_N
    return logits_V


def _descending(logits_V: Tensor) -> Tensor:
    """Ids by their fp32 logits [V] on the CPU, the largest first, of equal ones the lower id: a stable sort.

    The bits of a float, read as an integer, are ordered as floats are, but for negative ones, whose order is reversed.
    With the id in the lower half no two of these integers are equal, and numpy has vector instructions to sort them.
    """
    bits_V = (logits_V.numpy() + np.float32(0)).view(np.int32).astype(np.int64)  # the sum makes -0.0 0.0
    rising_V = bits_V ^ ((bits_V >> 63) & 0x7FFFFFFF)
    key_V = (~rising_V << 32) | np.arange(len(bits_V))
    key_V.sort()
    return torch.from_numpy(key_V & 0xFFFFFFFF)
