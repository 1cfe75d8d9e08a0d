"""Everything about the experts of one checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from storyteller_ds.atlas.co_activation import pair_counts, times_expected
from storyteller_ds.atlas.features import Feature, features_of
from storyteller_ds.atlas.information import Information, entropy, information
from storyteller_ds.atlas.knock_out import KnockedOut, cheapest, knock_out, one_by_one
from storyteller_ds.atlas.matrix import Counts, Matrix
from storyteller_ds.atlas.opened import Mixture, open_mixture
from storyteller_ds.atlas.parts_of_speech import INSTALL, can_tag
from storyteller_ds.atlas.preferences import Preference, preferences
from storyteller_ds.atlas.routing import Routed, routed
from storyteller_ds.atlas.sample import Sample
from storyteller_ds.atlas.similarity import TOKENS, Similarity, similarities
from storyteller_ds.config.data import DataConfig
from storyteller_ds.errors import UserError
from storyteller_ds.evaluation.interval import Estimate

Log = Callable[[str], None]
PREFERRED = 10
"""At most this many preferred tokens are named for each expert."""
_FEW = 1000
"""With fewer tokens than this, the results are mostly chance."""


@dataclass(frozen=True)
class Expert:
    """One expert of one layer."""

    number: int
    load: float
    """Its share of all choices: tokens times top_k."""
    first: float
    """Its share of the first choices: those with the largest gate weight."""
    gate: float | None
    """Mean gate weight where it is chosen; None: it never is."""
    preferences: tuple[Preference, ...]
    """The tokens that it serves more often than chance would explain, the clearest first."""
    shares: dict[str, tuple[float, ...]]
    """By feature, the share of each value among the tokens that it serves."""
    cost: Estimate | None
    """Bits per byte lost without it; None: not measured."""


@dataclass(frozen=True)
class Layer:
    """The experts of one block."""

    block: int
    """Counted from 0."""
    experts: tuple[Expert, ...]
    entropy: float
    """Of the first choice (bits); log2 of the number of experts if all are chosen equally often."""
    information: tuple[Information, ...]
    """How much the first choice depends on the token, the next token, each feature, and the layer before, if any."""
    pairs_EE: Counts | None
    """Tokens that went to both of two experts; None: each token goes to only one."""
    pairs_expected_EE: Matrix | None
    """Pair counts, as a multiple of what they would be if partners were chosen by their loads alone."""
    from_previous_EE: Counts | None
    """Tokens by their first choice in the previous MoE layer (rows) and in this one; None: this is the first."""
    similarity: Similarity


@dataclass(frozen=True)
class Pruning:
    """The same number of experts removed from every layer at once: those that cost least on their own."""

    number: int
    """Experts removed from each layer."""
    predicted: float
    """Bits per byte lost: the sum of what each costs on its own."""
    measured: KnockedOut


@dataclass(frozen=True)
class Atlas:
    """What the experts of a checkpoint do."""

    folder: Path
    text: str
    """The text that was read."""
    stories: int
    """Stories of which at least a part was read."""
    tokens: int
    """Tokens that were read."""
    top_k: int
    bits_per_byte: Estimate
    features: dict[str, tuple[str, ...]]
    """By name, the possible values of each feature."""
    shares: dict[str, tuple[float, ...]]
    """By feature, the share of each value among all tokens, to compare the shares of an expert with."""
    spelling: dict[int, str]
    """Text of the tokens in the experts' preferences."""
    layers: tuple[Layer, ...]
    knock_out_tokens: int
    """Tokens on which the cost of removing experts was measured; 0: it was not measured."""
    whole: Estimate | None
    """Bits per byte of the whole model on these tokens."""
    prunings: tuple[Pruning, ...]
    remarks: tuple[str, ...]
    """Caveats about the results."""

    @property
    def costs(self) -> list[tuple[Layer, Expert]]:
        """All experts whose cost was measured, the costliest first."""
        known = [(layer, expert) for layer in self.layers for expert in layer.experts if expert.cost is not None]
        return sorted(known, key=lambda each: -each[1].cost.value if each[1].cost else 0.0)


def make_atlas(
    path: Path, data: DataConfig | None, tokens: int, knock_out_tokens: int, device: torch.device, log: Log
) -> Atlas:
    """Look at the experts of a checkpoint, in fp32 on every device.

    Args:
        path: run folder (its newest valid step), step folder, or export for transformers.
        data: its validation text is read; None: the text the run was validated on.
        tokens: about how many are read.
        knock_out_tokens: about how many are read again without each expert; 0: none.
        device: where to run the model.
        log: gets a line about each step.

    Raises:
        UserError: the model has no experts, or the model or the text cannot be used.
    """
    mixture = open_mixture(path, data, device, log)
    text, decoder = mixture.text, mixture.model.decoder
    sample = Sample(mixture.model.run, text, tokens)
    found = routed(decoder, sample, device, log)
    if not np.isfinite(found.nll_T).all():
        raise UserError(f"{mixture.folder} gives no finite probabilities for {text.name}; use another step")
    features = features_of(text, sample)
    alike = similarities(decoder, mixture.blocks, Sample(mixture.model.run, text, TOKENS), device)
    tested = Sample(mixture.model.run, text, knock_out_tokens) if knock_out_tokens and mixture.num_experts > 1 else None
    costs, prunings, whole = _knocked_out(mixture, tested, device, log) if tested else ([], (), None)
    token_T = text.stream.take(sample.place_T - 1)
    layers = []
    for i, block in enumerate(mixture.blocks):
        of_block = [each.cost for each in costs if block in each.dropped]
        layers.append(
            _layer(mixture, i, found, features, token_T, text.stream.take(sample.place_T), alike[block], of_block)
        )
    named = {each.token for layer in layers for expert in layer.experts for each in expert.preferences}
    return Atlas(
        folder=mixture.folder,
        text=text.name,
        stories=int(sample.story_T.max()) + 1,
        tokens=len(token_T),
        top_k=mixture.top_k,
        bits_per_byte=sample.bits_per_byte(found.nll_T),
        features={each.name: each.values for each in features},
        shares={each.name: each.shares() for each in features},
        spelling=mixture.spelling(named),
        layers=tuple(layers),
        knock_out_tokens=len(tested.place_T) if tested else 0,
        whole=whole,
        prunings=prunings,
        remarks=_remarks(mixture, len(token_T)),
    )


def _knocked_out(
    mixture: Mixture, sample: Sample, device: torch.device, log: Log
) -> tuple[list[KnockedOut], tuple[Pruning, ...], Estimate]:
    """What each expert costs, what the cheapest of each layer cost together, and bits per byte of the whole model."""
    decoder = mixture.model.decoder
    nll_T = sample.nll(decoder, device)
    each = one_by_one(mixture.blocks, mixture.num_experts)
    costs = knock_out(decoder, sample, each, nll_T, device, log)
    sets = [cheapest(costs, number) for number in range(1, mixture.num_experts - mixture.top_k + 1)]
    together = knock_out(decoder, sample, [dropped for dropped, _ in sets], nll_T, device, log)
    prunings = [
        Pruning(number, predicted, measured)
        for number, ((_, predicted), measured) in enumerate(zip(sets, together, strict=True), 1)
    ]
    return costs, tuple(prunings), sample.bits_per_byte(nll_T)


def _layer(
    mixture: Mixture,
    i: int,
    found: Routed,
    features: list[Feature],
    token_T: NDArray[np.int64],
    next_T: NDArray[np.int64],
    similarity: Similarity,
    costs: list[Estimate],
) -> Layer:
    """The i-th layer with experts."""
    number, vocab_size = mixture.num_experts, mixture.model.decoder.vocab_size
    expert_TK = found.expert_LTK[i].astype(np.int64)
    first_T = expert_TK[:, 0]
    before_T = found.expert_LTK[i - 1, :, 0].astype(np.int64) if i else None
    choices_EV = np.bincount(
        (expert_TK * vocab_size + token_T[:, None]).ravel(), minlength=number * vocab_size
    ).reshape(number, vocab_size)
    follows = [information("token", token_T, first_T), information("next token", next_T, first_T)]
    follows += [information(each.name, each.value_T, first_T) for each in features]
    if before_T is not None:
        follows.append(information("expert of the layer before", before_T, first_T))
    pairs_EE = pair_counts(expert_TK, number) if mixture.top_k > 1 else None
    preferred = preferences(choices_EV, PREFERRED)
    experts = []
    for expert in range(number):
        served_TK = expert_TK == expert
        served_T = served_TK.any(axis=1)
        experts.append(
            Expert(
                expert,
                load=float(served_TK.mean()),
                first=float((first_T == expert).mean()),
                gate=float(found.weight_LTK[i][served_TK].mean()) if served_TK.any() else None,
                preferences=tuple(preferred[expert]),
                shares={each.name: each.shares(served_T) for each in features},
                cost=costs[expert] if costs else None,
            )
        )
    from_previous_EE = None
    if before_T is not None:
        from_previous_EE = np.bincount(before_T * number + first_T, minlength=number**2).reshape(number, number)
    return Layer(
        block=mixture.blocks[i],
        experts=tuple(experts),
        entropy=entropy(first_T),
        information=tuple(follows),
        pairs_EE=pairs_EE,
        pairs_expected_EE=None if pairs_EE is None else times_expected(pairs_EE),
        from_previous_EE=from_previous_EE,
        similarity=similarity,
    )


def _remarks(mixture: Mixture, tokens: int) -> tuple[str, ...]:
    remarks = []
    if tokens < _FEW:
        remarks.append(f"only {tokens:,} tokens were read: most of what differs between experts may be chance")
    if not can_tag():
        remarks.append(f"no parts of speech without {INSTALL}")
    if mixture.num_experts == 1:
        remarks.append("there is one expert in each layer: nothing can be left out, and nothing is chosen")
    elif mixture.num_experts == mixture.top_k:
        remarks.append(
            f"every token goes to all {mixture.top_k} experts: only which comes first is chosen, and none can be pruned"
        )
    return tuple(remarks)
