"""A mixture with fewer experts: the cheapest or the named ones are cut out of the routers and stacks."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from storyteller_ds.atlas.knock_out import Dropped, cheapest, knock_out, one_by_one
from storyteller_ds.atlas.opened import Mixture, open_mixture
from storyteller_ds.atlas.sample import Sample
from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.read import Checkpoint, is_of_another_tool, open_checkpoint
from storyteller_ds.checkpoint.write import Contents, check_new_run, write_weights_run
from storyteller_ds.config.data import DataConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import CheckpointError, UserError
from storyteller_ds.evaluation.interval import Estimate
from storyteller_ds.model.canonical import is_expert, placed_parameters
from storyteller_ds.model.counts import ParameterCount, count_parameters
from storyteller_ds.model.decoder import Decoder, empty_decoder


@dataclass(frozen=True)
class Pruned:
    """What was written, compared with what it was made from."""

    checkpoint: Path
    dropped: Dropped
    num_experts: tuple[int, int]
    """Of each layer, before and after, as in the pairs below."""
    parameters: tuple[ParameterCount, ParameterCount]
    text: str
    """The text both were measured on."""
    tokens: int
    bits_per_byte: tuple[Estimate, Estimate]
    more: Estimate
    """Bits per byte that pruning costs, with the interval of the difference."""
    predicted: float | None
    """The sum of what each expert costs on its own, by which they were chosen; None: they were named."""


def prune_experts(
    source: Path,
    output_dir: Path,
    wanted: int | Dropped,
    data: DataConfig | None,
    knock_out_tokens: int,
    device: torch.device,
    log: Callable[[str], None],
) -> Pruned:
    """Write a run folder with fewer experts, enough to generate, to evaluate, to export and to begin training with.

    Args:
        source: run folder (its newest valid step) or step folder of a mixture; weights are enough.
        output_dir: run folder to write; must not exist.
        wanted: how many experts each layer keeps, in which case those are removed that cost least on their own; or
            which experts to remove, the same number in each layer.
        data: its validation text is read; None: the text the run was validated on.
        knock_out_tokens: about how many tokens of it are read without each expert, to choose.
        device: where to run the model.
        log: gets a line about each step.

    Raises:
        UserError: the checkpoint or the text cannot be used, no such mixture is possible, or the folder cannot be
            written.
    """
    check_new_run(output_dir)
    if is_of_another_tool(source):
        raise UserError(
            f"{source} is a model in another tool's format; read it first: storyteller import --from hf --model "
            f"{source} --output_dir RUN"
        )
    mixture = open_mixture(source, data, device, log)
    checkpoint = open_checkpoint(mixture.folder)
    if (bits := checkpoint.open_weights().bits) is not None:
        raise CheckpointError(
            f"{checkpoint.folder} has {bits} bits; prune the run that it was made from, and quantize that"
        )
    check(mixture, wanted)
    dropped, predicted = _chosen(mixture, wanted, knock_out_tokens, device, log)
    run, weights = _fewer(mixture, dropped)
    sample = Sample(run, mixture.text, len(mixture.text.stream))
    log(f"measuring {len(sample.place_T):,} tokens of {mixture.text.name}, before and after")
    before_T = sample.nll(mixture.model.decoder, device)
    after_T = sample.nll(_decoder(run, weights, device), device)
    if not np.isfinite(before_T + after_T).all():
        raise UserError(f"{mixture.folder} gives no finite probabilities for {mixture.text.name}; use another step")
    contents = dataclasses.replace(
        _contents(checkpoint, run, mixture, dropped),
        val_bpb=sample.bits_per_byte(after_T).value if data is None else None,
        val_tokens=len(after_T) if data is None else None,
    )
    return Pruned(
        write_weights_run(output_dir, checkpoint.step, contents, {name: each.cpu() for name, each in weights.items()}),
        dropped,
        (mixture.num_experts, run.moe.num_experts),
        (count_parameters(mixture.model.run), count_parameters(run)),
        mixture.text.name,
        len(after_T),
        (sample.bits_per_byte(before_T), sample.bits_per_byte(after_T)),
        sample.bits_per_byte(after_T - before_T),
        predicted,
    )


def check(mixture: Mixture, wanted: int | Dropped) -> None:
    """Refuse an impossible request; see prune_experts.

    Raises:
        UserError: too few or too many experts would be left, a layer or an expert does not exist, or the layers would
            have different numbers of experts.
    """
    number, top_k = mixture.num_experts, mixture.top_k
    if isinstance(wanted, int):
        left = wanted
        if left >= number:
            raise UserError(f"{mixture.folder} has {number} experts in each layer; keep fewer than {left}")
    else:
        for block, experts in wanted.items():
            if block not in mixture.blocks:
                raise UserError(f"layer {block} has no experts; those that have: {_listed(mixture.blocks)}")
            if missing := [each for each in experts if not 0 <= each < number]:
                raise UserError(f"layer {block} has no expert {missing[0]}; they are 0 to {number - 1}")
        counts = {block: len(wanted.get(block, ())) for block in mixture.blocks}
        if len(set(counts.values())) > 1:
            few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            raise UserError(
                f"all layers must keep as many experts: layer {few} would lose {counts[few]} and layer {many} "
                f"{counts[many]}; name as many of each"
            )
        left = number - counts[mixture.blocks[0]]
    if left < top_k:
        raise UserError(
            f"each token goes to {top_k} experts, and {left} would be left in each layer; keep {top_k} or more"
        )


def _chosen(
    mixture: Mixture, wanted: int | Dropped, knock_out_tokens: int, device: torch.device, log: Callable[[str], None]
) -> tuple[Dropped, float | None]:
    """Which experts to remove, and their predicted cost."""
    if not isinstance(wanted, int):
        return {block: tuple(sorted(experts)) for block, experts in wanted.items()}, None
    decoder = mixture.model.decoder
    sample = Sample(mixture.model.run, mixture.text, knock_out_tokens)
    each = one_by_one(mixture.blocks, mixture.num_experts)
    costs = knock_out(decoder, sample, each, sample.nll(decoder, device), device, log)
    return cheapest(costs, mixture.num_experts - wanted)


def _fewer(mixture: Mixture, dropped: Dropped) -> tuple[RunConfig, dict[str, Tensor]]:
    """The config and the canonical weights without these experts."""
    kept = {
        block: [each for each in range(mixture.num_experts) if each not in experts]
        for block, experts in dropped.items()
    }
    run, weights = mixture.model.run, {}
    for name, parameter, *_ in placed_parameters(mixture.model.decoder):
        weight = parameter.detach()
        if is_expert(name) or ".router." in name:
            weight = weight[kept[int(name.split(".")[1])]]
        weights[name] = weight
    moe = run.moe.model_copy(update={"num_experts": len(next(iter(kept.values())))})
    # The number of experts may no longer be divisible by the old ep_size.
    parallel = run.parallel.model_copy(update={"ep_size": "auto"})
    return run.model_copy(update={"moe": moe, "parallel": parallel}), weights


@torch.no_grad()
def _decoder(run: RunConfig, weights: dict[str, Tensor], device: torch.device) -> Decoder:
    decoder = empty_decoder(run).to_empty(device=device)
    for name, parameter, *_ in placed_parameters(decoder):
        parameter.copy_(weights[name])
    return decoder.eval()


def _contents(checkpoint: Checkpoint, run: RunConfig, mixture: Mixture, dropped: Dropped) -> Contents:
    """Contents of a checkpoint that is validated on the same text as the one it was made from."""
    return dataclasses.replace(
        Contents.of_model(run, mixture.model.tokenizer.to_json()),
        trainer=checkpoint.read_json(names.TRAINER),
        dataset_fingerprint=checkpoint.manifest.dataset_fingerprint,
        topology={"world_size": 1, "dropped_experts": {str(block): list(each) for block, each in dropped.items()}},
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
