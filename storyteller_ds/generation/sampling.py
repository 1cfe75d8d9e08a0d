"""Choosing the next token from the model's distribution."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor

from storyteller_ds.errors import UserError
from storyteller_ds.validation_errors import first_problem

_BLOCK = 64
"""Number of weights that are summed first; see _drawn."""
_LOWEST_TEMPERATURE = 1e-6
"""Below it the quotients overflow."""


class SamplingConfig(BaseModel):
    """How a story is continued."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(0.8, ge=0, le=1e6)
    """Logits are divided by it; 0: always the most probable token."""
    top_k: int = Field(0, ge=0)
    """Only the k most probable tokens; 0: all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the most probable tokens that together reach this probability (nucleus, Holtzman et al. 2020); 1: all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Only tokens with at least this fraction of the highest probability (Nguyen et al. 2024); 0: all."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Logits of tokens in the prompt and the story are divided by it, negative ones multiplied (CTRL, Keskar et al.
    2019, sec. 4.1); 1: none."""
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens in the story, not counting the prompt (OpenAI's API); 0: none."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """Likewise, once for each occurrence in the story."""
    logit_bias: Mapping[Annotated[int, Field(ge=0)], float] = {}
    """Token id -> value added to its logit; -100 all but forbids it."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Stop strings; the story ends before the first of them."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest continuation (tokens); None: as long as the context has room."""
    past_context: Literal["stop", "slide"] = "stop"
    """At the end of the model's context, the story ends, or continues from the last half of the context, which requires
    rotary positions. A model that never ends a story would then go on forever, so slide needs max_new_tokens."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the random numbers; the same seed gives the same story."""

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

    @cached_property
    def is_plain(self) -> bool:
        """Whether only the temperature changes the logits before sampling."""
        changed = self.logit_bias or self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return not (changed or self._filters)

    @property
    def _filters(self) -> bool:
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    def of_story(self, number: int) -> Self:
        """The same config with another seed, for story `number` of several; story 0 keeps this one's."""
        return self.model_copy(update={"seed": (self.seed + number) % 2**63})


def sampling_config(settings: Mapping[str, Any], prefix: str = "") -> SamplingConfig:
    """A SamplingConfig with these settings.

    Raises:
        UserError: there is no such setting, or it is out of range; `prefix` is put before its name.
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
    """One token id for the next position; with temperature 0, that of the largest logit after bias and penalties.

    Args:
        logits_V: [V], unchanged.
        config: sampling.
        generator: on the CPU; not used with temperature 0.
        prompt: ids that also count as said for the repetition penalty.
        generated: ids that the model has said, for all penalties.
    """
    if config.is_plain:
        return sample_plain(logits_V.float().cpu().numpy()[None], [config], [generator])[0]
    if config.temperature == 0:
        return int(_penalized(logits_V, config, prompt, generated).argmax())
    id_N, prob_N = distribution(logits_V, config, prompt, generated)
    (place,) = _drawn(prob_N.numpy()[None], [generator])
    return int(id_N[place])


def sample_plain(
    logits_BV: NDArray[np.float32], configs: Sequence[SamplingConfig], generators: Sequence[torch.Generator]
) -> list[int]:
    """The same for several texts at once, for configs that are plain.

    In numpy: torch would split such an operation among its threads, which then keep the cores busy for a while.

    Args:
        logits_BV: [B, V], unchanged.
        configs: one for each text.
        generators: one for each text.
    """
    chosen: list[int] = logits_BV.argmax(axis=1).tolist()
    drawing = [row for row, config in enumerate(configs) if config.temperature]
    if drawing:
        largest_B1 = logits_BV.max(axis=1, keepdims=True)[drawing]
        temperature_B1 = np.array([[configs[row].temperature] for row in drawing], np.float32)
        weight_BV = np.exp((logits_BV[drawing] - largest_B1) / temperature_B1)
        for row, place in zip(drawing, _drawn(weight_BV, [generators[row] for row in drawing]), strict=True):
            chosen[row] = place
    return chosen


def distribution(
    logits_V: Tensor, config: SamplingConfig, prompt: Sequence[int] = (), generated: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Ids [N], int64, and their sampling weights [N], fp32, on the CPU; sorted if some ids are left out.

    Applied in the order of transformers: logit_bias, repetition_penalty, presence_penalty and frequency_penalty (which
    transformers does not have), temperature, top_k, top_p, min_p. Arguments as for `sample`; temperature is not 0.
    """
    # On the CPU in fp32, so that a seed gives the same story on every device.
    logits_V = _penalized(logits_V, config, prompt, generated).float().cpu() / config.temperature
    if not config._filters:
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


def _drawn(weight_BN: NDArray[np.float32], generators: Sequence[torch.Generator]) -> list[int]:
    """For each row, an index drawn in proportion to its weight, with one uniform number from each generator.

    Weights are summed in blocks first, since a full cumulative sum takes as long as a step of a small model. So does
    torch.multinomial, which draws a number for each index.
    """
    texts, number = weight_BN.shape
    padded = np.zeros((texts, -(-number // _BLOCK) * _BLOCK), np.float32)
    padded[:, :number] = weight_BN
    block_BKN = padded.reshape(texts, -1, _BLOCK)
    end_BK = np.einsum("bkn->bk", block_BKN).cumsum(axis=1, dtype=np.float64)
    places = []
    for end_K, block_KN, generator in zip(end_BK, block_BKN, generators, strict=True):
        uniform = torch.rand((), dtype=torch.float64, generator=generator).item() * end_K[-1]
        block = _place(end_K, uniform)
        within = uniform - (end_K[block - 1] if block else 0)
        places.append(block * _BLOCK + _place(block_KN[block].cumsum(dtype=np.float64), within))
    return places


def _place(end_N: NDArray[np.float64], number: float) -> int:
    """The interval that a number falls into, by interval ends; never past the last nonempty one, despite rounding."""
    return min(int(end_N.searchsorted(number, side="right")), int(end_N.searchsorted(end_N[-1])))


def _penalized(logits_V: Tensor, config: SamplingConfig, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    """Logits with bias and penalties, fp32 [V] on the CPU; if there are none, the logits as they are."""
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
    """Ids sorted by their fp32 logits [V] on the CPU, the largest first, of equal ones the lower id: a stable sort.

    The bits of floats, read as integers, are ordered like the floats, except that the order of negative ones is
    reversed. With the id in the lower half, no two of these integers are equal, and numpy sorts them with vector
    instructions.
    """
    bits_V = (logits_V.numpy() + np.float32(0)).view(np.int32).astype(np.int64)  # adding 0 turns -0.0 into 0.0
    rising_V = bits_V ^ ((bits_V >> 63) & 0x7FFFFFFF)
    key_V = (~rising_V << 32) | np.arange(len(bits_V))
    key_V.sort()
    return torch.from_numpy(key_V & 0xFFFFFFFF)
