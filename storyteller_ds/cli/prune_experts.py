"""storyteller prune-experts: a mixture with fewer experts."""

import re
import shlex
from pathlib import Path

import click

from storyteller_ds.cli.device_name import DeviceName
from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.given_data import given_data
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError

_EXPERT = re.compile(r"\s*(\d{1,9}):(\d{1,9})\s*")


@click.command(name="prune-experts")
@click.option("--checkpoint", required=True, type=UserPath(), help="Run folder or step folder; weights are enough.")
@click.option("--output_dir", required=True, type=UserPath(), help="Run folder to write; must not exist yet.")
@click.option(
    "--experts",
    type=click.IntRange(1),
    help="Keep this many experts in each layer: those that cost most when removed one at a time.",
)
@click.option(
    "--drop", metavar="LAYER:EXPERT,...", help="Or remove these, the same number in each layer; counted from 0."
)
@click.option(
    "--data",
    type=UserPath(or_word=True),
    help="Text to choose experts and measure on.  [default: what the run was validated on]",
)
@click.option(
    "--knock_out_tokens",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Approximate number of tokens to read without each expert.",
)
@click.option("--device", type=DeviceName(), default="auto", show_default=True)
@click.argument("overrides", nargs=-1, metavar="[data.field=value]...")
def prune_experts(
    checkpoint: Path,
    output_dir: Path,
    experts: int | None,
    drop: str | None,
    data: str | None,
    knock_out_tokens: int,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Remove experts from a mixture and measure the cost in bits per byte.

    The result has weights only: it can generate, be evaluated and be exported, and can start a new run (--init_from).
    """
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    if (experts is None) == (drop is None):
        raise UserError("give --experts, how many each layer keeps, or --drop, which ones go; not both")
    wanted = experts if drop is None else _dropped(drop)
    assert wanted is not None  # exactly one of the two is given
    # Imported here, with torch: --help need not wait for it.
    from storyteller_kernels.cpu_sharing import shared_cores

    from storyteller_ds.atlas import prune
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.distributed.world import pick_device

    place = pick_device(device, None, "--device")
    if place.type == "cpu":
        click.get_current_context().with_resource(shared_cores())
    log = lines_to(stderr_console())
    done = prune.prune_experts(
        checkpoint, output_dir, wanted, given_data(data, overrides), knock_out_tokens, place, log
    )
    for block, gone in done.dropped.items():
        print(f"layer {block}: without {', '.join(map(str, gone))}")
    before, after = done.bits_per_byte
    doubt = "" if done.more.half_width is None else f" ± {done.more.half_width:.4f}"
    guess = "" if done.predicted is None else f"; {done.predicted:+.4f} was predicted"
    print(
        f"bits per byte of {done.tokens:,} tokens of {done.text}: {before.value:.4f} with {done.num_experts[0]} "
        f"experts a layer, {after.value:.4f} with {done.num_experts[1]} ({done.more.value:+.4f}{doubt}{guess})"
    )
    print(f"parameters: {done.parameters[0].total:,} before, {done.parameters[1].total:,} now")
    print(f"checkpoint: {done.checkpoint}")
    print(f"train it:   storyteller train --init_from {shlex.quote(str(output_dir))}")


def _dropped(text: str) -> dict[int, tuple[int, ...]]:
    """The experts that --drop names, by layer.

    Raises:
        UserError: the text is not such a list, or names an expert twice.
    """
    dropped: dict[int, tuple[int, ...]] = {}
    for each in text.split(","):
        if (found := _EXPERT.fullmatch(each)) is None:
            raise UserError(f"--drop {text}: {each!r} is not LAYER:EXPERT; write for instance --drop 0:3,1:5")
        block, expert = int(found[1]), int(found[2])
        if expert in dropped.get(block, ()):
            raise UserError(f"--drop {text}: {block}:{expert} is there twice")
        dropped[block] = (*dropped.get(block, ()), expert)
    return dropped
