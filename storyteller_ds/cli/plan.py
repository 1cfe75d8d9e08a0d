"""storyteller plan: what a run will need and take, before it is started."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    from storyteller_ds.planning.devices import Device
    from storyteller_ds.planning.estimate import Estimate
    from storyteller_ds.planning.strategies import Asked, Row

_USUAL = 8
"""Devices of a machine, where nobody says."""


@click.command()
@click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
@click.option("--ds_config", type=UserPath(), help="DeepSpeed JSON.  [default: the recommended way]")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Machines.")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="Ranks on each machine.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="h200-141, h100-80, a100-80, rtx5090-32, rtx4090-24, t4-16, m3-32, or cpu: this machine.",
)
@click.option("--price_per_hour", type=click.FloatRange(0), help="Of one device, in any currency: adds the cost.")
@click.option("--scale", is_flag=True, help="Add a table for 1 to 4,096 devices, with as many sequences on each.")
@click.option(
    "--dry_run", is_flag=True, help="Take the first step as rank after rank, and compare what they do; needs no card."
)
@click.option("--world_size", type=click.IntRange(1), help="Ranks of the dry run.  [default: nodes x gpus]")
@click.option("--hostfile", type=UserPath(), help="Ranks of the dry run: the slots of these hosts.")
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
    """Say what a run will need and take: memory, messages, time, cost, and which way is best.

    Nothing is trained, and no card is needed: times are estimates by published rates, or on this machine by measured
    ones.
    """
    if dry_run:
        size, local_size = world_size or nodes * gpus, gpus if world_size is None else min(world_size, _USUAL)
        if hostfile is not None:
            size, local_size = _slots(hostfile, world_size)
        _dry_run(config, ds_config, overrides, size, local_size, as_json)
        return
    if world_size is not None or hostfile is not None:
        raise UserError("--world_size and --hostfile are of --dry_run; say how many devices with --nodes and --gpus")
    from storyteller_ds.planning.estimate import Ranks
    from storyteller_ds.planning.strategies import Asked, command, recommended, rows, scaled

    asked = Asked(config, overrides, _device(device), Ranks(nodes, gpus))
    found = rows(asked)
    best = recommended(found)
    chosen = _chosen(asked, None if ds_config is None else str(ds_config), found, best)
    scales = scaled(asked, best) if scale and best is not None else []
    line = None if best is None else command(asked, best)
    if as_json:
        print(json.dumps(_as_json(chosen, found, best, line, scales, price_per_hour), indent=2))
        return
    _print(chosen, found, best, line, scales, price_per_hour)


def _slots(hostfile: Path, world_size: int | None) -> tuple[int, int]:
    """Ranks in all, and those of a machine."""
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
    from storyteller_ds.planning.devices import HERE, published

    if name != HERE:
        return published(name)
    from storyteller_ds.planning.here import this_machine

    return this_machine(lines_to(stderr_console()))


def _chosen(asked: "Asked", ds_config: str | None, found: "list[Row]", best: "Row | None") -> "Estimate":
    """What is shown in full: what was asked for, else the recommended way, else the first that could run."""
    if ds_config is not None:
        return asked.estimate(ds_config)
    if best is not None and best.fitting is not None:
        return best.fitting
    possible = next((row.asked for row in found if row.asked is not None), None)
    return possible or asked.estimate(None)  # which says why not


def _print(
    chosen: "Estimate",
    found: "list[Row]",
    best: "Row | None",
    line: str | None,
    scales: list[tuple[int, Any]],
    price_per_hour: float | None,
) -> None:
    from storyteller_ds.console import print_table
    from storyteller_ds.planning import report
    from storyteller_ds.planning.speed import ASSUMPTIONS

    stage = chosen.run.parallel.zero_stage
    way = "one device" if stage is None else f"ZeRO-{stage}, {chosen.plan.description}"
    print(f"{chosen.loaded.name} on {chosen.ranks.number} x {chosen.device.name}, {chosen.dtype}: {way}\n")
    print_table(report.memory_table(chosen))
    if not chosen.fits:
        print(f"\nit does not fit; {chosen.what_to_lower()}")
    print()
    if any(chosen.messages.sent.values()):
        print_table(report.message_table(chosen))
        print()
    print("\n".join(report.figures(chosen, price_per_hour)), end="\n\n")
    print_table(report.strategy_table(found, best))
    if scales:
        print()
        print_table(report.scale_table(scales))
    print(f"\nassumed: {ASSUMPTIONS}\nrates: {chosen.device.source}")
    print("\nno way fits; use more or larger devices" if line is None else f"\nrecommended:\n  {line}")


def _as_json(
    chosen: "Estimate",
    found: "list[Row]",
    best: "Row | None",
    line: str | None,
    scales: list[tuple[int, Any]],
    price_per_hour: float | None,
) -> dict[str, Any]:
    from storyteller_ds.errors import ConfigError
    from storyteller_ds.planning.speed import ASSUMPTIONS

    cost = None if price_per_hour is None else chosen.hours * price_per_hour * chosen.ranks.number
    return {
        **chosen.as_json(),
        "cost": cost,
        "what_to_lower": None if chosen.fits else chosen.what_to_lower(),
        "strategies": [
            {
                "name": row.name,
                "settings": row.all_settings,
                "obstacle": row.obstacle,
                "fits": row.fitting is not None,
                "estimate": None if (shown := row.fitting or row.asked) is None else shown.as_json(),
            }
            for row in found
        ],
        "recommended": None if best is None else best.name,
        "command": line,
        "scale": [
            {"devices": number, "obstacle": str(one)} if isinstance(one, ConfigError) else one.as_json()
            for number, one in scales
        ],
        "assumptions": ASSUMPTIONS,
        "rates": chosen.device.source,
    }
