"""A mixture whose routers follow a known rule."""

from collections.abc import Callable
from pathlib import Path

import torch

from storyteller_ds.checkpoint.write import Contents, write_weights_run
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.model.canonical import placed_parameters


@torch.no_grad()
def write_ruled(model: StoryModel, rule: Callable[[int], int], used: int, output_dir: Path) -> Path:
    """A run folder with a changed copy of a model: every router sends a token to the expert that the rule has first.

    The second choice is expert 0, or for expert 0 number 1; experts from `used` on are never chosen.

    Args:
        model: a mixture with rmsnorm, without residual scales; changed.
        rule: from the id of a token to its expert.
        used: experts that the rule has; no more than features.
        output_dir: must not exist.
    """
    decoder = model.decoder
    # The stream begins with one number for each expert, and neither attention nor experts write there.
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
