"""Choosing the next token from the model's distribution."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from storyteller_ds.errors import UserError
from storyteller_ds.validation_errors import first_problem


class SamplingConfig(BaseModel):
    """How a story is continued."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(0.8, ge=0)
    """Logits are divided by it; 0: always the most probable token."""
    top_k: int = Field(0, ge=0)
    """Only the k most probable tokens; 0: all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the most probable tokens that together reach this probability (nucleus, Holtzman et al. 2020)."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest continuation (tokens); None: as long as the context has room."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Start of the random stream; the same seed gives the same story."""

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


def sample(logits_V: Tensor, config: SamplingConfig, generator: torch.Generator) -> int:
    """One token id from the logits of the next position, [V]."""
    if config.temperature == 0:
        return int(logits_V.argmax())
    # On the CPU in fp32, so that a seed means the same story on every device.
    logits_V = logits_V.float().cpu() / config.temperature
    sorted_V, id_V = torch.sort(logits_V, descending=True, stable=True)
    if config.top_k:
        sorted_V = sorted_V[: config.top_k]
    prob_V = torch.softmax(sorted_V, dim=-1)
    # A token stays if those before it have not yet reached top_p; the first always stays.
    before_V = prob_V.cumsum(dim=-1) - prob_V
    prob_V = torch.where(before_V < config.top_p, prob_V, 0.0)
    return int(id_V[torch.multinomial(prob_V, 1, generator=generator)])
