"""Plots of an atlas."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from storyteller_ds.atlas.atlas import Atlas
from storyteller_ds.png import write_png

LOAD, KINDS, KNOCK_OUT, PAIRS = "atlas-load.png", "atlas-kinds.png", "atlas-knock-out.png", "atlas-pairs.png"
_COLUMNS = 4
_MOST = 2.0
"""Largest value of the log2 scale: 4 times as often."""
SCALE: Mapping[str, Any] = {"cmap": "RdBu_r", "vmin": -_MOST, "vmax": _MOST}
"""Arguments of imshow for a plot of doublings()."""
_NUMBERED = 16
"""Up to this many experts per layer, each cell shows its number."""


def save_pictures(atlas: Atlas, folder: Path) -> list[tuple[str, str]]:
    """Draw everything the atlas has; each complete plot replaces an earlier one.

    Args:
        atlas: the atlas to draw.
        folder: where to write the plots.

    Returns:
        File names and what they show.

    Raises:
        OSError: a plot cannot be written.
    """
    drawn = [(LOAD, "Load of each expert", load(atlas)), (KINDS, "What each expert serves", kinds(atlas))]
    if atlas.costs:
        drawn.append((KNOCK_OUT, "What is lost without each expert", knock_out(atlas)))
    if atlas.layers[0].pairs_EE is not None:
        drawn.append((PAIRS, "Experts that are chosen together", pairs(atlas)))
    for name, _, figure in drawn:
        write_png(figure, folder / name)
    return [(name, title) for name, title, _ in drawn]


def load(atlas: Atlas) -> Figure:
    """A heat map of the load, layers by experts; white is an even load."""
    load_LE = np.array([[each.load for each in layer.experts] for layer in atlas.layers])
    layers, experts = load_LE.shape
    figure = Figure((max(5.0, 2.2 + 0.6 * experts), 1.6 + 0.4 * layers), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(doublings(load_LE * experts), **SCALE, aspect="auto")
    axes.grid(visible=False)
    axes.set_yticks(range(layers), [str(layer.block) for layer in atlas.layers])
    axes.set(xlabel="expert", ylabel="layer", title="load (% of all choices)", xticks=range(experts))
    if experts <= _NUMBERED:
        for (i, j), value in np.ndenumerate(load_LE):
            axes.text(j, i, f"{100 * value:.1f}", ha="center", va="center", fontsize=8, color="#111111")
    doublings_bar(figure, image, axes, "times an even load")
    return figure


def kinds(atlas: Atlas) -> Figure:
    """A heat map of how often each kind of token goes to each expert, relative to how often it occurs in the text."""
    parts = [name for name in ("kind", "part of speech", "place in a word", "speech") if name in atlas.features]
    columns = [
        (part, i, name) for part in parts for i, name in enumerate(atlas.features[part]) if atlas.shares[part][i]
    ]
    experts = [(layer.block, each) for layer in atlas.layers for each in layer.experts]
    usual = np.array([atlas.shares[part][i] for part, i, _ in columns])
    share = np.array([[each.shares[part][i] for part, i, _ in columns] for _, each in experts])
    figure = Figure((2.5 + 0.32 * len(columns), 2.6 + 0.18 * len(experts)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(doublings(share / usual), **SCALE, aspect="auto")
    axes.grid(visible=False)
    axes.set_yticks(range(len(experts)), [f"{block}.{each.number}" for block, each in experts], fontsize=7)
    axes.set_xticks(range(len(columns)), [name for _, _, name in columns], rotation=60, ha="right", fontsize=8)
    size = len(atlas.layers[0].experts)
    for line in range(1, len(atlas.layers)):
        axes.axhline(line * size - 0.5, color="black", linewidth=0.8)
    for part in parts:
        places = [place for place, column in enumerate(columns) if column[0] == part]
        if not places:
            continue
        axes.text((places[0] + places[-1]) / 2, -0.8, part, ha="center", va="bottom", fontsize=8)
        if places[-1] + 1 < len(columns):
            axes.axvline(places[-1] + 0.5, color="black", linewidth=0.8)
    axes.set(ylabel="layer.expert")
    doublings_bar(figure, image, axes, "times as often as in the text")
    return figure


def knock_out(atlas: Atlas) -> Figure:
    """A bar chart of the bits per byte lost without each expert, the costliest first, with 95 % intervals."""
    figure = Figure((6.5, 1.4 + 0.19 * len(atlas.costs)), layout="constrained")
    axes = figure.subplots()
    place_of = {(layer.block, expert.number): place for place, (layer, expert) in enumerate(atlas.costs)}
    for layer in atlas.layers:
        costs = [(place_of[layer.block, each.number], each.cost) for each in layer.experts if each.cost is not None]
        values, errors = [cost.value for _, cost in costs], [cost.half_width or 0.0 for _, cost in costs]
        places, thin = [place for place, _ in costs], {"elinewidth": 0.8, "ecolor": "0.5"}
        axes.barh(places, values, xerr=errors, label=f"layer {layer.block}", error_kw=thin)
    axes.set_yticks(
        range(len(atlas.costs)), [f"{layer.block}.{each.number}" for layer, each in atlas.costs], fontsize=7
    )
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(atlas.costs) - 0.4, -0.6)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set(xlabel=f"bits per byte lost without it ({atlas.knock_out_tokens:,} tokens)", ylabel="layer.expert")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def pairs(atlas: Atlas) -> Figure:
    """A heat map per layer of how often two experts are chosen together, relative to what their loads would give."""
    columns = min(_COLUMNS, len(atlas.layers))
    rows = -(-len(atlas.layers) // columns)
    figure = Figure((1.2 + 2.4 * columns, 0.6 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    image = None
    for axes, layer in zip(panels, atlas.layers, strict=False):
        if layer.pairs_expected_EE is not None:
            shown = doublings(layer.pairs_expected_EE)
            image = axes.imshow(shown, **SCALE)
        axes.grid(visible=False)
        axes.set(title=f"layer {layer.block}")
        ticks = range(0, len(layer.experts), max(1, len(layer.experts) // 8))
        axes.set(xticks=ticks, yticks=ticks)
    for axes in panels[len(atlas.layers) :]:
        axes.set_axis_off()
    if image is not None:
        doublings_bar(figure, image, list(panels), "times as often as by chance")
    return figure


def doublings(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2, clipped to the scale; NaN is kept."""
    with np.errstate(divide="ignore"):
        clipped: NDArray[np.float64] = np.clip(np.log2(times), -_MOST, _MOST)
    return clipped


def doublings_bar(figure: Figure, image: object, axes: Axes | list[Axes], label: str) -> None:
    """Add the color bar for plots of doublings()."""
    bar = figure.colorbar(image, ax=axes, label=label)  # type: ignore[arg-type]  # an AxesImage
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["¼ or less", "½", "1", "2", "4 or more"])
