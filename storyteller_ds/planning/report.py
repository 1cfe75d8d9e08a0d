"""The tables of `storyteller plan`."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from storyteller_ds.errors import ConfigError
from storyteller_ds.model import count_parameters
from storyteller_ds.planning.estimate import Estimate
from storyteller_ds.planning.strategies import Row

GIB = 2**30


def memory_table(estimate: Estimate) -> Table:
    """The parts of memory at the moment of a step that needs most."""
    rows = _table("memory of a rank", "GiB")
    for name, size in [*estimate.memory.parts.items(), *estimate.other_bytes.items()]:
        rows.add_row(name, _gib(size))
    if estimate.memory.host:
        rows.add_row("offloaded, in the host's memory", _gib(estimate.memory.host))
    rows.add_row(f"needed, most {estimate.memory.moment}", _gib(estimate.needed))
    rows.add_row(f"there is on {estimate.device.name}", _gib(estimate.available))
    return rows


def message_table(estimate: Estimate) -> Table:
    """What a rank hands to each collective."""
    rows = _table("messages of a rank and step", "ranks", "MB", "MB on the wire")
    for name, size in estimate.messages.sent.items():
        if size:
            wire = estimate.messages.on_the_wire(name)
            rows.add_row(name, f"{estimate.messages.groups[name]:,}", f"{size / 1e6:,.1f}", f"{wire / 1e6:,.1f}")
    return rows


def figures(estimate: Estimate, cost: float | None) -> list[str]:
    """The other estimates, one per line.

    Args:
        estimate: the estimate of the run.
        cost: of the whole run, if the price is known.
    """
    speed, plan = estimate.speed, estimate.plan
    counts = count_parameters(estimate.run)
    price = "" if cost is None else f", cost {cost:,.2f}"
    return [
        f"model: {counts.total:,} parameters, {counts.active:,} active per token",
        f"micro-batch: {plan.micro_batch_size} x {plan.accumulation_steps} accumulation step(s) x "
        f"{plan.world_size} rank(s); the largest that fits is {estimate.largest_micro_batch}",
        f"step, at best: {1000 * speed.step_s:,.1f} ms (products {1000 * speed.products_s:,.1f}, reads and writes "
        f"{1000 * speed.copies_s:,.1f}, messages {1000 * speed.messages_s:,.1f}); MFU {speed.mfu:.0%}; "
        f"{speed.tokens_per_s:,.0f} tokens/s",
        f"run: {estimate.tokens:,} tokens, at best in {_duration(estimate.hours)}{price}",
        f"checkpoint: {estimate.checkpoint_bytes / 1e9:,.2f} GB on disk",
    ]


def strategy_table(found: Sequence[Row], best: Row | None) -> Table:
    """All strategies side by side."""
    rows = _table("strategy", "experts over", "needs GiB", "fits", "micro-batch", "step ms", "")
    for row in found:
        if row.asked is None:
            rows.add_row(row.name, *_ep(row), "", "cannot run", "", "", "")
            continue
        shown = row.fitting or row.asked
        is_smaller = row.fitting is not None and row.fitting is not row.asked
        fits = "no" if row.fitting is None else "with a smaller micro-batch" if is_smaller else "yes"
        speed = "" if row.fitting is None else f"{1000 * shown.speed.step_s:,.1f}"
        note = "recommended" if row is best else ""
        micro = str(shown.plan.micro_batch_size)
        rows.add_row(row.name, str(shown.plan.ep_size), _gib(shown.needed), fits, micro, speed, note)
    return rows


def obstacles(found: Sequence[Row]) -> list[str]:
    """Why some strategies cannot run, with one line for each reason."""
    names: dict[str, list[str]] = {}
    for row in found:
        if row.obstacle is not None and row.name not in names.setdefault(row.obstacle, []):
            names[row.obstacle].append(row.name)
    return [f"{', '.join(each)} cannot run: {obstacle}" for obstacle, each in names.items()]


def _ep(row: Row) -> list[str]:
    return [each.partition("=")[2] for each in row.settings] or [""]


def scale_table(found: Sequence[tuple[int, Estimate | ConfigError]]) -> Table:
    """The run on increasing numbers of devices."""
    rows = _table("devices", "experts over", "needs GiB", "fits", "step ms", "tokens/s", "part of linear")
    first: float | None = None
    for number, estimate in found:
        if isinstance(estimate, ConfigError):
            rows.add_row(f"{number:,}", "", "", "cannot run", "", "", "")
            continue
        each = estimate.speed.tokens_per_s / number
        first = first or each
        rows.add_row(
            f"{number:,}",
            str(estimate.plan.ep_size),
            _gib(estimate.needed),
            "yes" if estimate.fits else "no",
            f"{1000 * estimate.speed.step_s:,.1f}",
            f"{estimate.speed.tokens_per_s:,.0f}",
            f"{each / first:.0%}",
        )
    return rows


def _table(*columns: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _duration(hours: float) -> str:
    for unit, size in (("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:,.1f} {unit}"
    return f"{3600 * hours:,.1f} s"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"
