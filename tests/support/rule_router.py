"""A mixture whose routers follow a known rule."""

from collections.abc import Callable
from pathlib import Path

import torch

from storyteller_ds.checkpoint.write import Contents, write_weights_run
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.model.canonical import placed_parameters


@torch.no_grad()
def write_ruled(model: StoryModel, rule: Callable[[int], int], used: int, output_dir: Path) -> Path:
    """Write a run folder with a modified model: every router's first choice is the expert given by the rule.

    The second choice is expert 0, or expert 1 if the first is expert 0; experts from `used` on are never chosen.

    Args:
        model: a mixture with rmsnorm, without residual scales; modified in place.
        rule: maps a token ID to its expert.
        used: number of experts that the rule uses; no more than features.
        output_dir: must not exist.
    """
    decoder = model.decoder
    # The residual stream starts with one number per expert; neither attention nor experts write to those.
    for i in range(decoder.vocab_size):
        decoder.embedding.weight[i, :used] = 0
        decoder.embedding.weight[i, rule(i)] = 10
    for block in decoder.blocks:
        block.attention.o_proj.weight[:used] = 0
        block.ffn.experts.down_proj[:, :used] = 0
        block.ffn.router.weight.zero_()
        block.ffn.router.weight[:used, :used] = 10 * torch.eye(used)
        block.ffn.router.weight[used:, :used] = -10
    weights = {name: parameter.detach() for name, parameter, *_ in placed_parameters(decoder)}
    write_weights_run(output_dir, 0, Contents.of_model(model.run, model.tokenizer.to_json()), weights)
    return output_dir
