"""storyteller plan: the memory, time and cost of a run, before it is started."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    from storyteller_ds.planning.devices import Device
    from storyteller_ds.planning.planned import Planned

_USUAL = 8
"""Devices per machine if not specified."""


@click.command()
@click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
@click.option("--ds_config", type=UserPath(), help="DeepSpeed JSON.  [default: the recommended one]")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Machines.")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="Ranks on each machine.")
@click.option(
    "--device",
    default="here",
    metavar="NAME",
    help="h200-141, h100-80, a100-80, rtx5090-32, rtx4090-24, t4-16, m3-32; of this machine: cpu, cuda or mps.  "
    "[default: what training would use here]",
)
@click.option("--price_per_hour", type=click.FloatRange(0), help="Price of one device in any currency; adds the cost.")
@click.option("--scale", is_flag=True, help="Add a table for 1 to 4,096 devices with the same batch on each.")
@click.option(
    "--dry_run", is_flag=True, help="Run the first step as one rank after another and compare them; needs no GPU."
)
@click.option("--world_size", type=click.IntRange(1), help="Ranks of the dry run.  [default: nodes x gpus]")
@click.option("--hostfile", type=UserPath(), help="Take the ranks of the dry run from this hostfile.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; bytes and seconds.")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def plan(
    config: str | None,
    ds_config: Path | None,
    nodes: int,
    gpus: int,
    device: str,
    price_per_hour: float | None,
    scale: bool,
    dry_run: bool,
    world_size: int | None,
    hostfile: Path | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Estimate a run: memory, communication, time, cost, and the best strategy.

    Nothing is trained and no GPU is needed: times are estimated from published rates, or on this machine from measured
    ones.
    """
    if dry_run:
        size, local_size = world_size or nodes * gpus, gpus if world_size is None else min(world_size, _USUAL)
        if hostfile is not None:
            size, local_size = _slots(hostfile, world_size)
        _dry_run(config, ds_config, overrides, size, local_size, as_json)
        return
    if price_per_hour is not None and not math.isfinite(price_per_hour):
        raise UserError(f"--price_per_hour={price_per_hour} is not a price")
    if world_size is not None or hostfile is not None:
        raise UserError("--world_size and --hostfile are of --dry_run; say how many devices with --nodes and --gpus")
    from storyteller_ds.planning import planned
    from storyteller_ds.planning.estimate import Ranks
    from storyteller_ds.planning.strategies import Asked

    asked = Asked(config, overrides, _device(device), Ranks(nodes, gpus))
    found = planned.plan(asked, None if ds_config is None else str(ds_config), price_per_hour, scale)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _print(found)


def _slots(hostfile: Path, world_size: int | None) -> tuple[int, int]:
    """Total number of ranks, and the largest number on one machine."""
    from storyteller_ds.distributed.hostfile import read_hostfile

    slots = read_hostfile(hostfile)
    size = sum(slots.values())
    if world_size not in (None, size):
        raise UserError(f"{hostfile} has {size} slots on {len(slots)} hosts, and --world_size is {world_size}")
    return size, max(slots.values())


def _dry_run(
    config: str | None, ds_config: Path | None, overrides: tuple[str, ...], size: int, local_size: int, as_json: bool
) -> None:
    from storyteller_ds.config import load_config
    from storyteller_ds.console import lines_to, print_table, stderr_console
    from storyteller_ds.planning.dry_run import report
    from storyteller_ds.planning.dry_run.run import dry_run

    loaded = load_config(config, overrides, ds_config=ds_config, ranks=size)
    found = dry_run(loaded, size, local_size, lines_to(stderr_console()))
    if as_json:
        print(json.dumps(report.as_json(found), indent=2))
    else:
        print("\n".join(report.lines(found)))
        print_table(report.table(found))
    if found.disagreements:
        raise UserError("the ranks would wait for each other for ever: " + "; ".join(found.disagreements))


def _device(name: str) -> "Device":
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.planning.devices import OF_THIS_MACHINE, published

    if name not in OF_THIS_MACHINE:
        return published(name)
    from storyteller_ds.planning.here import this_machine

    return this_machine(name, lines_to(stderr_console()))


def _print(found: "Planned") -> None:
    from storyteller_ds.console import print_table
    from storyteller_ds.planning import report
    from storyteller_ds.planning.speed import ASSUMPTIONS

    shown, stage = found.shown, found.shown.run.parallel.zero_stage
    strategy = "one device" if stage is None else f"ZeRO-{stage}, {shown.plan.description}"
    print(f"{shown.loaded.name} on {shown.ranks.number} x {shown.device.name}, {shown.dtype}: {strategy}\n")
    print_table(report.memory_table(shown))
    if not shown.fits:
        print(f"\nit does not fit; {shown.what_to_lower()}")
    print()
    if any(shown.messages.sent.values()):
        print_table(report.message_table(shown))
        print()
    print("\n".join(report.figures(shown, found.cost)), end="\n\n")
    print_table(report.strategy_table(found.rows, found.recommended))
    for line in report.obstacles(found.rows):
        print(line)
    if found.scales:
        print()
        print_table(report.scale_table(found.scales))
    print(f"\nassumed: {ASSUMPTIONS}\nrates: {shown.device.source}")
    if found.command is None:
        print("\nnothing fits; use more or larger devices")
    else:
        print(f"\nrecommended:\n  {found.command}")
    if shown.ranks.nodes > 1:
        print("  (hosts: a file with a line `NAME slots=N` for each machine)")
