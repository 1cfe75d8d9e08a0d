"""An atlas as tables for people, as Markdown, and as complete JSON."""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from storyteller_ds.atlas.atlas import Atlas, Expert, Pruning
from storyteller_ds.console import PAGE_COLUMNS
from storyteller_ds.evaluation.figures import estimate, number, percent
from storyteller_ds.evaluation.interval import Estimate

_SHOWN = 6
"""How many tokens of an expert the table shows."""
_NOTABLE = 1.5
"""The table names a value if an expert gets it at least this many times as often as it occurs in the text …"""
_ENOUGH = 0.05
"""… and if it makes up at least this fraction of what the expert serves."""
_KINDS = 4
"""The table shows at most this many values of an expert."""
_NEGLIGIBLE = 0.01
"""A pruning is suggested only if it costs less than this fraction of the bits per byte."""


def heading(atlas: Atlas) -> str:
    """What was examined."""
    layers, experts = len(atlas.layers), len(atlas.layers[0].experts)
    return (
        f"{atlas.folder}: {layers} layer(s) of {experts} experts, {atlas.top_k} for each token; on {atlas.text}: "
        f"{atlas.tokens:,} tokens of {atlas.stories:,} stories, {estimate(atlas.bits_per_byte)} bits per byte"
    )


def tables(atlas: Atlas) -> Iterator[tuple[str, Table]]:
    """The tables, each with its title."""
    yield "How much of the choice of expert is known from (%; 0: nothing, 100: all of it)", _routers(atlas)
    dearest = " (the dearest first)" if atlas.costs else ""
    yield f"Experts{dearest}, and the tokens and kinds that they serve more than chance would have it", _experts(atlas)
    yield "Pairs of experts", _pairs(atlas)
    if atlas.prunings:
        title = "Without the cheapest experts of each layer: bits per byte lost"
        yield title, _prunings(atlas.prunings)


def verdict(atlas: Atlas) -> list[str]:
    """The main findings, one per line."""
    most = [max(layer.information, key=lambda each: each.share) for layer in atlas.layers]
    lines = [
        f"layer {layer.block} follows the {each.feature} most: {percent(each.share)} % of the choice is known from it"
        for layer, each in zip(atlas.layers, most, strict=True)
        if each.share > 0
    ]
    if not atlas.costs:
        return lines
    (layer, dearest), count = atlas.costs[0], len(atlas.costs)
    free = sum(each.cost is not None and _is_free(each.cost) for _, each in atlas.costs)
    lines.append(
        f"dearest of {count} experts: {dearest.number} of layer {layer.block}, {_signed(dearest.cost)} bits per byte "
        f"without it; {free} cost nothing that this text can tell"
    )
    if (best := suggestion(atlas)) is not None:
        left = len(atlas.layers[0].experts) - best.number
        lines.append(
            f"storyteller prune-experts --experts {left} would drop {best.number} of each layer, for "
            f"{_signed(best.measured.cost)} bits per byte"
        )
    elif atlas.prunings:
        lines.append(f"no expert of each layer can go for less than {_NEGLIGIBLE:.0%} of the bits per byte")
    return lines


def suggestion(atlas: Atlas) -> Pruning | None:
    """The largest pruning that costs less than a hundredth of the bits per byte; None if none does."""
    if atlas.whole is None:
        return None
    limit = _NEGLIGIBLE * atlas.whole.value
    cheap = [each for each in atlas.prunings if each.measured.cost.value < limit]
    return max(cheap, key=lambda each: each.number, default=None)


def as_json(atlas: Atlas) -> str:
    """Everything; unknown values are null."""
    chosen = suggestion(atlas)
    document = {**_plain(atlas), "suggested": None if chosen is None else chosen.number, "verdict": verdict(atlas)}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def as_markdown(atlas: Atlas, pictures: Sequence[tuple[str, str]]) -> str:
    """The tables and plots.

    Args:
        atlas: the atlas to show.
        pictures: file names and what they show.
    """
    out = io.StringIO()
    console = Console(file=out, width=PAGE_COLUMNS, markup=False, emoji=False, highlight=False)
    for title, table in tables(atlas):
        print(f"\n## {title}", file=out)
        console.print(table)
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    images = "".join(f"\n![{title}]({name})\n" for name, title in pictures)
    notes = "".join(f"- {line}\n" for line in (*verdict(atlas), *atlas.remarks))
    return f"# What the experts do\n\n{heading(atlas)}\n\n{notes}{text}\n{images}"


def _routers(atlas: Atlas) -> Table:
    names = [each.feature for each in max((layer.information for layer in atlas.layers), key=len)]
    rows = _table("layer", "load, least to most (%)", *names)
    for layer in atlas.layers:
        share = {each.feature: percent(max(0.0, each.share)) for each in layer.information}
        loads = [each.load for each in layer.experts]
        cells = [share.get(name, "") for name in names]
        rows.add_row(str(layer.block), f"{percent(min(loads))} to {percent(max(loads))}", *cells)
    return rows


def _experts(atlas: Atlas) -> Table:
    rows = _table("layer", "expert", "load (%)", "gate", "bits per byte lost", left=("tokens", "kinds"))
    every = [(layer, expert) for layer in atlas.layers for expert in layer.experts]
    for layer, expert in atlas.costs or every:
        cost = "-" if expert.cost is None else _signed(expert.cost)
        served = " ".join(seen(atlas.spelling[each.token]) for each in expert.preferences[:_SHOWN])
        kinds = ", ".join(f"{name} {times:.1f}x" for name, times in _notable(atlas, expert))
        numbers = (str(layer.block), str(expert.number), percent(expert.load), number(expert.gate))
        rows.add_row(*numbers, cost, served, kinds)
    return rows


def _notable(atlas: Atlas, expert: Expert) -> list[tuple[str, float]]:
    """Values that an expert serves much more often than they occur in the text, with how many times more often."""
    times: dict[str, float] = {}
    for feature in ("kind", "part of speech", "place in a word", "part of the story", "speech"):
        of_expert = zip(
            atlas.features.get(feature, ()), expert.shares.get(feature, ()), atlas.shares.get(feature, ()), strict=True
        )
        for name, share, usual in of_expert:
            if share >= _ENOUGH and share >= _NOTABLE * usual:
                times.setdefault(name, share / usual)  # "name" is both a kind and a part of speech
    return sorted(times.items(), key=lambda each: -each[1])[:_KINDS]


def _pairs(atlas: Atlas) -> Table:
    rows = _table(
        "layer",
        "chosen together most (times chance)",
        "least",
        "outputs most alike (cosine)",
        "(CKA)",
        "weights (cosine)",
    )
    for layer in atlas.layers:
        times_EE, alike = layer.pairs_expected_EE, layer.similarity
        cells = ["-", "-"] if times_EE is None else [_extreme(times_EE, 1), _extreme(times_EE, -1)]
        alikes = (alike.output_cosine_EE, alike.output_cka_EE, alike.weight_cosine_EE)
        rows.add_row(str(layer.block), *cells, *(_extreme(each, 1) for each in alikes))
    return rows


def _extreme(value_EE: NDArray[np.float64], sign: int) -> str:
    """The pair with the largest value, or with sign -1 the smallest."""
    i, j = np.triu_indices(len(value_EE), 1)
    values = value_EE[i, j]
    if not np.isfinite(values).any():
        return "-"
    best = int(np.nanargmax(sign * values))
    return f"{i[best]} and {j[best]}: {values[best]:.2f}"


def _prunings(prunings: Sequence[Pruning]) -> Table:
    rows = _table("of each layer", "predicted (sum of each alone)", "measured", left=("which",))
    for each in prunings:
        which = "; ".join(
            f"layer {block}: {', '.join(map(str, experts))}" for block, experts in each.measured.dropped.items()
        )
        rows.add_row(str(each.number), f"{each.predicted:+.4f}", _signed(each.measured.cost), which)
    return rows


def _table(*right: str, left: Sequence[str] = ()) -> Table:
    rows = Table(box=box.MARKDOWN)
    for name in right:
        rows.add_column(name, justify="right")
    for name in left:
        rows.add_column(name)
    return rows


def seen(token: str) -> str:
    """A token with its spaces made visible, and without characters that would break a table's columns."""
    return token.replace(" ", "␣").replace("|", "¦")


def _signed(value: Estimate | None) -> str:
    if value is None:
        return "-"
    return f"{'' if value.value < 0 else '+'}{estimate(value)}"


def _is_free(cost: Estimate) -> bool:
    return cost.value <= (cost.half_width or 0.0)


def _plain(value: Any) -> Any:
    """Convert a value to what JSON can hold."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
