"""storyteller bench: measure on this machine what the documentation claims."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyteller_ds.cli.group import Group
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    from storyteller_ds.bench.compared import Recipe

PAGE, PLOT, RESULTS = "quality.md", "quality.png", "quality.json"


@click.group(cls=Group)
def bench() -> None:
    """Measure on this machine what the documentation claims."""


@bench.command()
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Training time of each run.",
)
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of runs with the best learning rate."
)
@click.option(
    "--at_once",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs at the same time, each with its share of the cores.",
)
@click.option("--only", metavar="RECIPE[,RECIPE...]", help="Only these recipes.  [default: all]")
@click.option("--output_dir", type=UserPath(), help="Output folder.  [default: runs/bench-quality]")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def quality(
    minutes: float,
    seeds: int,
    at_once: int,
    only: str | None,
    output_dir: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Train our recipes and others for the same time and compare bits per byte.

    First a step of each recipe is timed: the minutes become steps, and the machine is then free for other work. Each
    recipe runs with three learning rates. Overrides are for all of them: data.source=FILE data.validation=FILE. The
    same command again continues.
    """
    # Imported here, with torch: --help need not wait for it.
    from storyteller_ds.bench import report
    from storyteller_ds.bench.compared import RECIPES
    from storyteller_ds.bench.quality import Comparison
    from storyteller_ds.console import lines_to, print_table, stderr_console
    from storyteller_ds.durable import write_atomically
    from storyteller_ds.records.run_folder import written_record

    recipes = _chosen(only, RECIPES)
    folder = output_dir or Path("runs") / "bench-quality"
    for recipe in recipes:
        recipe.load(overrides)  # a typo ends the command before any run starts
    comparison = Comparison(recipes, minutes, seeds, overrides, folder, at_once=at_once)
    runs = sum(comparison.runs.values())
    log = lines_to(stderr_console())
    log(f"{runs} runs of {minutes:g} min, {runs * minutes / 60:.1f} h, in {folder}")
    pace, found = comparison.pace(log), comparison.run(log)
    command = shlex.join(["storyteller", *sys.argv[1:]])
    texts = {
        PAGE: report.as_page(comparison, pace, found, command, PLOT),
        RESULTS: report.as_json(comparison, pace, found, command),
    }
    for name, text in texts.items():
        with written_record(folder / name):
            write_atomically(folder / name, text)
    report.save_plot(minutes, found, folder / PLOT)
    print_table(report.table(comparison, pace, found))
    for line in report.verdict(found):
        print(line)
    print(f"\nreport: {folder / PAGE}\nplot:   {folder / PLOT}")


@bench.command()
@click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def train(config: str | None, overrides: tuple[str, ...]) -> None:
    """Time training steps, and what their parts would take at this device's own rates.

    Without data: on random tokens. Products, traffic and launches overlap on a GPU, where the longest of them is the
    least that a step can take.
    """
    from rich import box
    from rich.table import Table

    from storyteller_ds.bench.roofline import measure
    from storyteller_ds.config import load_config
    from storyteller_ds.console import print_table
    from storyteller_ds.distributed.world import pick_device

    run = load_config(config, overrides).run
    found = measure(run, pick_device(run.parallel.device, None))
    rows = Table(box=box.MARKDOWN)
    for column in ("part of a step", "work", "alone", "of the step"):
        rows.add_column(column, justify="left" if column == "part of a step" else "right")
    for name, work, seconds in (
        ("matrix products", f"{found.products_flop / 1e9:,.1f} GFLOP", found.products_s),
        ("reads and writes of other operators", f"{found.traffic_bytes / 1e9:,.2f} GB", found.traffic_s),
        ("launches of operators", f"{found.launches:,}", found.launches_s),
        ("the whole step, measured", f"{found.tokens:,} tokens", found.step_s),
    ):
        rows.add_row(name, work, f"{1000 * seconds:,.1f} ms", f"{seconds / found.step_s:.0%}")
    print_table(rows)


@bench.command()
@click.option("--checkpoint", required=True, type=UserPath(), help="Run folder or step folder; weights are enough.")
@click.option("--tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest story.")
@click.option("--device", default="auto", show_default=True, help="As in storyteller generate.")
def generate(checkpoint: Path, tokens: int, device: str) -> None:
    """Time generation against other installed tools and the limit of this machine.

    All generate the same tokens, one story at a time, which is checked first. Then they take turns.
    """
    import tempfile

    from rich import box
    from rich.table import Table

    from storyteller_ds.bench.generation import TOGETHER, measure
    from storyteller_ds.console import lines_to, print_table, stderr_console
    from storyteller_ds.distributed.world import pick_device
    from storyteller_ds.interchange.load import open_model

    log = lines_to(stderr_console())
    model = open_model(checkpoint, pick_device(device, 0, "--device"), log, "fp32")  # like all the others
    with tempfile.TemporaryDirectory() as folder:
        found = measure(model, tokens, Path(folder), log)
    rows = Table(box=box.MARKDOWN)
    rows.add_column("tokens a second")
    for column in ("decode", "of the limit", f"prefill, {found.prompt} tokens", "of the limit"):
        rows.add_column(column, justify="right")
    for name, speed in found.of.items():
        shares = (mine / most for mine, most in zip(speed, found.limit, strict=True))
        decode, prefill = (f"{mine:,.0f}" for mine in speed)
        rows.add_row(name, decode, f"{next(shares):.0%}", prefill, f"{next(shares):.0%}")
    rows.add_row(f"storyteller, {TOGETHER} stories at once", f"{found.together:,.0f}", "", "", "")
    rows.add_row("limit: a copy, a product", f"{found.limit.decode:,.0f}", "", f"{found.limit.prefill:,.0f}", "")
    print_table(rows)


def _chosen(only: str | None, recipes: "tuple[Recipe, ...]") -> "list[Recipe]":
    """The requested recipes, in the order of the list.

    Raises:
        UserError: a recipe is unknown.
    """
    names = [recipe.name for recipe in recipes]
    wanted = names if only is None else [name.strip() for name in only.split(",")]
    for name in wanted:
        if name not in names:
            raise UserError(f"no recipe is called '{name}'{did_you_mean(name, names)}; there are {', '.join(names)}")
    return [recipe for recipe in recipes if recipe.name in wanted]


@bench.command()
@click.option(
    "--megabytes", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Amount of generated text."
)
def data(megabytes: float) -> None:
    """Time the data pipeline: tokenizer, shards, batches and cleaning, each beside its limit."""
    from storyteller_ds.bench import cleaning, encoding, loading
    from storyteller_ds.cores import usable_cores
    from storyteller_ds.data.cleaning.extra import require_libraries

    require_libraries()
    for line in encoding.measure(megabytes).lines():
        print(line)
    for rate in loading.measure():
        print(rate.line())
    print(cleaning.measure(megabytes, usable_cores()).line())


@bench.command()
@click.option("--output", type=UserPath(), help="Also write the record of this device to this file.")
def device(output: Path | None) -> None:
    """Measure this machine: matrix products, copies, kernel launches and messages between ranks.

    Takes under a minute; keep the machine idle. `storyteller plan` and the MFU of training use the record.
    """
    from rich import box
    from rich.table import Table

    from storyteller_ds.console import lines_to, print_table, stderr_console
    from storyteller_ds.distributed.world import pick_device
    from storyteller_ds.durable import check_output, write_output
    from storyteller_ds.engines.device_record import device_key, measure_device, write_record

    if output is not None:
        check_output(output, "--output")
    place = pick_device("auto", None)
    entry = measure_device(place, lines_to(stderr_console()))
    file = write_record(place, entry)
    if output is not None:
        write_output(output, "--output", json.dumps({device_key(place): entry}, indent=2) + "\n")
    rows = Table(box=box.MARKDOWN)
    rows.add_column(device_key(place))
    rows.add_column("measured", justify="right")
    for name, rate in entry["products_flop_per_s"].items():
        rows.add_row(f"matrix products, {name}", f"{rate / 1e9:,.1f} GFLOP/s")
    rows.add_row("copies, read and written", f"{entry['copy_byte_per_s'] / 1e9:,.2f} GB/s")
    rows.add_row("launch of an operator", f"{1e6 * entry['launch_s']:,.1f} us")
    for name, rate in entry["messages_byte_per_s"].items():
        rows.add_row(f"{name.replace('_', '-')}, out of each rank", f"{rate / 1e9:,.2f} GB/s")
    print_table(rows)
    print(f"\nrecord: {file}")
