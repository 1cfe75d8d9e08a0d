"""Plots of bits per byte over the varied fields."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from storyteller_ds.png import write_png
from storyteller_ds.records.run_folder import written_record
from storyteller_ds.sweep.results import Result, best_first
from storyteller_ds.sweep.space import Listed, Range, Space, spans_magnitudes

PANEL_INCHES = (5.0, 4.0)
"""Width and height."""
_BEST: Mapping[str, Any] = {"label": "best", "marker": "*", "markersize": 14, "color": "black", "linestyle": ""}


def save_plot(space: Space, results: Sequence[Result], path: Path) -> None:
    """Plot the scores of trials.

    One field: a curve. Two fields, one with listed values: a curve for each of these. Otherwise: a panel for each
    field.

    Args:
        space: what was varied.
        results: trials that have a score.
        path: PNG to write or replace.

    Raises:
        UserError: it cannot be written.
    """
    listed = [each for each in space.varied if isinstance(each, Listed)]
    curves = min(listed, key=lambda each: len(each.texts)) if listed and len(space.varied) == 2 else None
    across = [each for each in space.varied if each is not curves]
    figure = Figure((PANEL_INCHES[0] * len(across), PANEL_INCHES[1]), layout="constrained")
    panels = figure.subplots(1, len(across), sharey=True, squeeze=False)[0]
    look = {"marker": "o", "linestyle": "-" if len(across) == 1 else ""}
    for axes, field in zip(panels, across, strict=True):
        for label, of_curve in _curves(curves, results).items():
            _draw(axes, field, of_curve, label=label, **look)
        _draw(axes, field, best_first(results)[:1], **_BEST)
        _label(axes, field)
    panels[0].set_ylabel("bits per byte")
    panels[0].legend()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; an existing one is replaced only when it is complete.

    Raises:
        UserError: it cannot be written.
    """
    with written_record(path):
        write_png(figure, path)


def _curves(by: Listed | None, results: Sequence[Result]) -> dict[str, list[Result]]:
    """Trials grouped by the value of a field; without one, all of them together."""
    if by is None:
        return {"trials": [*results]}
    return {f"{by.field}={text}": [each for each in results if each.values[by.field] == text] for text in by.texts}


def _draw(axes: Axes, field: Listed | Range, results: Sequence[Result], **look: Any) -> None:
    """Draw the scores of trials over the values of a field."""
    texts = [result.values[field.field] for result in results]
    places = _numbers(texts) if isinstance(field, Range) else [_places(field)[text] for text in texts]
    points = sorted(zip(places, (result.bpb or 0.0 for result in results), strict=True))
    axes.plot([place for place, _ in points], [bpb for _, bpb in points], **look)


def _label(axes: Axes, field: Listed | Range) -> None:
    axes.set_xlabel(field.field)
    numbers = _numbers(field.texts)
    if numbers and spans_magnitudes(numbers):
        axes.set_xscale("log")
    if isinstance(field, Listed):
        axes.set_xticks(list(_places(field).values()), field.texts)
        axes.minorticks_off()


def _places(field: Listed) -> dict[str, float]:
    """The position of each value on its axis: numbers at their value, names side by side."""
    return dict(zip(field.texts, _numbers(field.texts) or range(len(field.texts)), strict=True))


def _numbers(texts: Sequence[str]) -> list[float]:
    """The values as numbers; empty if any of them is not a number."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return []
