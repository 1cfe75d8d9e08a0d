"""storyteller upcycle: a mixture of experts from a dense model."""

from pathlib import Path

import click

from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.paths import UserPath


@click.command()
@click.option("--checkpoint", required=True, type=UserPath(), help="Run folder or step folder of a dense model.")
@click.option("--output_dir", required=True, type=UserPath(), help="Run folder to write; must not exist yet.")
@click.option("--num_experts", type=click.IntRange(2), default=8, show_default=True)
@click.option("--top_k", type=click.IntRange(1), default=2, show_default=True, help="Experts per token.")
@click.option(
    "--every_n_layers", type=click.IntRange(1), default=1, show_default=True, help="Every n-th layer gets experts."
)
@click.option(
    "--noise",
    type=click.FloatRange(0, 10),
    default=0.0,
    show_default=True,
    help="Noise added to the experts' matrices, relative to their standard deviation; 0: the same outputs.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of routers and noise.")
def upcycle(
    checkpoint: Path,
    output_dir: Path,
    num_experts: int,
    top_k: int,
    every_n_layers: int,
    noise: float,
    seed: int,
) -> None:
    """Turn a dense model into a mixture of experts, to train it further.

    Each expert is a copy of the feed-forward layer; routers are new. The result has weights only, for `storyteller
    train --init_from`.
    """
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    # Imported here, with torch: --help need not wait for it.
    import shlex

    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.conversion import upcycle as conversion

    experts = {"num_experts": num_experts, "top_k": top_k, "every_n_layers": every_n_layers}
    folder = conversion.upcycle(checkpoint, output_dir, experts, noise, seed, lines_to(stderr_console()))
    print(f"checkpoint: {folder}")
    print(f"train it:   storyteller train --init_from {shlex.quote(str(output_dir))}")
