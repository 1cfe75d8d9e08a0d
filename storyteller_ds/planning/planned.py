"""The whole answer of `storyteller plan`: one strategy in full, all of them side by side, and the command to type."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storyteller_ds.errors import ConfigError
from storyteller_ds.planning.estimate import Estimate
from storyteller_ds.planning.speed import ASSUMPTIONS
from storyteller_ds.planning.strategies import Asked, Row, command, recommended, rows, scaled


@dataclass(frozen=True)
class Planned:
    """What was asked, and what was found."""

    asked: Asked
    shown: Estimate
    """The estimate to show in full: of the JSON that was asked for, else of the recommended strategy."""
    rows: Sequence[Row]
    recommended: Row | None
    """None: nothing fits."""
    scales: Sequence[tuple[int, Estimate | ConfigError]]
    """Number of devices, and the estimate for it; empty unless asked for."""
    price_per_hour: float | None
    """Price of one device."""

    @property
    def command(self) -> str | None:
        """The command for the recommended strategy."""
        return None if self.recommended is None else command(self.asked, self.recommended)

    @property
    def cost(self) -> float | None:
        """Cost of the whole run at that price."""
        shown, price = self.shown, self.price_per_hour
        return None if price is None else shown.hours * price * shown.ranks.number

    def as_json(self) -> dict[str, Any]:
        """For --json, in bytes and seconds."""
        return {
            **self.shown.as_json(),
            "cost": self.cost,
            "what_to_lower": None if self.shown.fits else self.shown.what_to_lower(),
            "strategies": [row.as_json() for row in self.rows],
            "recommended": None if self.recommended is None else self.recommended.name,
            "command": self.command,
            "scale": [
                {"devices": number, "obstacle": str(one)} if isinstance(one, ConfigError) else one.as_json()
                for number, one in self.scales
            ],
            "assumptions": ASSUMPTIONS,
            "rates": self.shown.device.source,
        }


def plan(
    asked: Asked, ds_config: str | None = None, price_per_hour: float | None = None, is_scaled: bool = False
) -> Planned:
    """Estimate all strategies of a run.

    Args:
        asked: the run, and where it is to run.
        ds_config: DeepSpeed JSON to show in full; None: the recommended one.
        price_per_hour: the price of one device.
        is_scaled: whether to also estimate the recommended strategy on 1 to 4,096 devices.

    Raises:
        ConfigError: the run config, or the JSON that was asked for, cannot run on these ranks.
    """
    found = rows(asked)
    best = recommended(found)
    scales = scaled(asked, best) if is_scaled and best is not None else []
    return Planned(asked, _shown(asked, ds_config, found, best), found, best, scales, price_per_hour)


def _shown(asked: Asked, ds_config: str | None, found: Sequence[Row], best: Row | None) -> Estimate:
    if ds_config is not None:
        return asked.estimate(ds_config)
    if best is not None and best.fitting is not None:
        return best.fitting
    possible = next((row.asked for row in found if row.asked is not None), None)
    return possible or asked.estimate(None if asked.ranks.number == 1 else "zero2")  # its error says why it cannot run
