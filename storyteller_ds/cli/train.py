"""storyteller train, and the main job launch/train.py: what can be given. cli/training.py does it."""

from pathlib import Path

import click

from storyteller_ds.cli.paths import UserPath


@click.command()
@click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
@click.option("--ds_config", type=UserPath(), help="DeepSpeed JSON; without one, a single device.")
@click.option("--output_dir", type=UserPath(), help="Where everything goes.  [default: runs/NAME]")
@click.option(
    "--resume",
    type=UserPath(or_word=True),
    default="auto",
    show_default=True,
    help="auto, never, or the path of a run or a step.",
)
@click.option("--quiet", is_flag=True, help="No progress, only errors.")
@click.option("--local_rank", type=int, hidden=True, help="Passed by the deepspeed launcher; LOCAL_RANK says the same.")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def train(
    config: str | None,
    ds_config: Path | None,
    output_dir: Path | None,
    resume: str,
    quiet: bool,
    local_rank: int | None,  # noqa: ARG001  # see its help
    overrides: tuple[str, ...],
) -> None:
    """Train a story model. Any field of the run config can be set as section.field=value."""
    from storyteller_ds.cli.training import train_on_this_rank  # torch, for which --help need not wait

    train_on_this_rank(config, ds_config, output_dir, resume, quiet, overrides)
