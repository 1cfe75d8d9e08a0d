"""The view below the progress bar on a terminal: the loss as a curve, and the load of each expert as a bar."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from storyteller_ds.training.callbacks.callback import Record

BARS = "▁▂▃▄▅▆▇█"
_LEAST_ROWS = 10
"""A terminal with fewer rows has room for the progress bar only."""
_LABEL = 8
"""Columns in front of the bars."""


class Curve:
    """Losses of a run of any length, as at most `most` means over equally many losses each."""

    def __init__(self, most: int = 512) -> None:
        self._most, self._each = most, 1
        self._means: list[float] = []
        self._open: list[float] = []

    def add(self, value: float) -> None:
        """Add the next loss."""
        self._open.append(value)
        if len(self._open) == self._each:
            self._means.append(sum(self._open) / self._each)
            self._open = []
        if len(self._means) == self._most:  # even
            self._means = _halved(self._means)
            self._each *= 2

    def points(self, most: int) -> list[float]:
        """At most this many points, from first to last."""
        points = self._means or self._open
        while len(points) > most:
            points = _halved(points)
        return points


class LiveView:
    """A rich renderable that follows the records; empty if the terminal is small or does not support Unicode."""

    def __init__(self) -> None:
        self._curve = Curve()
        self._last: Record = {}

    def look(self, record: Record) -> None:
        """Take the record of a step that is done."""
        self._last = record
        if record["train_loss"] is not None:
            self._curve.add(record["train_loss"])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.ascii_only or console.height < _LEAST_ROWS:
            return
        points = self._curve.points(max(1, options.max_width - 40))
        if len(points) > 1:
            yield self._line(
                "loss", Text(bars(points, min(points), max(points))), f"{points[0]:.3f} to {points[-1]:.3f}"
            )
        if load := self._last.get("expert_load"):
            yield self._line("experts", _expert_bars(load), self._about_experts())

    def _about_experts(self) -> str:
        record = self._last
        parts = {"busiest {:.2f} x its share": "expert_load_max_over_mean", "margin {:.2f}": "router_margin"}
        told = [text.format(record[key]) for text, key in parts.items() if record.get(key) is not None]
        idle = record.get("idle_experts") or 0
        return "  ".join([*told, *[f"{idle} without tokens"] * (idle > 0)])

    @staticmethod
    def _line(label: str, shown: Text, note: str) -> Text:
        line = Text(label.ljust(_LABEL), no_wrap=True, overflow="ellipsis")
        return line.append_text(shown).append(f"  {note}")


def bars(values: Sequence[float], lowest: float, highest: float) -> str:
    """A character for each value, from the lowest bar to the highest."""
    spread = (highest - lowest) or 1.0
    return "".join(BARS[min(len(BARS) - 1, max(0, int((v - lowest) / spread * len(BARS))))] for v in values)


def _expert_bars(load: Sequence[float | None]) -> Text:
    """A bar per expert: a fair share is half height, unless an expert has over twice that; no load is a red dot."""
    shown, highest = Text(), max(2 / len(load), *(one or 0.0 for one in load))
    for one in load:
        shown.append(bars([one], 0.0, highest) if one else "·", None if one else "red")
    return shown


def _halved(points: Sequence[float]) -> list[float]:
    pairs = [points[index : index + 2] for index in range(0, len(points), 2)]
    return [sum(pair) / len(pair) for pair in pairs]
