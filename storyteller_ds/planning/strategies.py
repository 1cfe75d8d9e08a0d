"""All strategies for spreading one run over a number of ranks, and the command for the best one."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from storyteller_ds.config import load_config
from storyteller_ds.config.deepspeed import OURS
from storyteller_ds.errors import ConfigError
from storyteller_ds.planning.devices import Device
from storyteller_ds.planning.estimate import Estimate, Ranks

ALONE = "none"
"""Name of the row without DeepSpeed."""


@dataclass(frozen=True)
class Asked:
    """What was typed: the run, and where it is to run."""

    config: str | None
    overrides: Sequence[str]
    device: Device
    ranks: Ranks

    def estimate(self, ds_config: str | None, more: Sequence[str] = ()) -> Estimate:
        """The estimate of one strategy.

        Raises:
            ConfigError: the strategy cannot be used or cannot run.
        """
        number = self.ranks.number
        loaded = load_config(self.config, [*self.overrides, *more], ds_config=ds_config, ranks=number)
        return Estimate.of(loaded, self.device, self.ranks)


@dataclass(frozen=True)
class Row:
    """One strategy."""

    name: str
    ds_config: str | None
    settings: tuple[str, ...]
    """Overrides in addition to those that were typed."""
    asked: Estimate | None
    """With the batch sizes of the config; None: it cannot run."""
    fitting: Estimate | None
    """With a smaller micro-batch if needed; None: it does not fit."""
    obstacle: str | None = None
    """Why it cannot run."""

    @property
    def needs_disk(self) -> bool:
        """Whether the user has to name a fast disk."""
        return self.name == "zero3_nvme"

    @property
    def is_special(self) -> bool:
        """Whether it is only for users who ask for it: it needs a disk to be named, or changes the number format."""
        return self.name in ("zero3_nvme", "zero2_fp16")

    @property
    def is_roundabout(self) -> bool:
        """Whether it saves memory by work that no roofline shows: hooks that gather weights, an update on the host."""
        return self.name.startswith("zero3") or self.name.endswith("offload")

    @property
    def all_settings(self) -> list[str]:
        """All overrides that it needs to fit."""
        if self.fitting is None or self.fitting is self.asked:
            return [*self.settings]
        return [*self.settings, f"train.micro_batch_size={self.fitting.plan.micro_batch_size}"]

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        shown = self.fitting or self.asked
        return {
            "name": self.name,
            "settings": self.all_settings,
            "obstacle": self.obstacle,
            "fits": self.fitting is not None,
            "estimate": None if shown is None else shown.as_json(),
        }


def rows(asked: Asked) -> list[Row]:
    """Every JSON of ds_configs/, with each ep_size if it spreads experts; on one device also one without DeepSpeed."""
    found = []
    names = sorted(path.stem for path in OURS.glob("*.json"))
    if asked.ranks.number == 1:
        names.insert(0, ALONE)
    for name in names:
        ds_config = None if name == ALONE else name
        for settings in _ep_settings(asked, name):
            found.append(_row(asked, name, ds_config, settings))
    return found


def _ep_settings(asked: Asked, name: str) -> Iterator[tuple[str, ...]]:
    """Settings of ep_size that are worth a row; if one was typed, only that."""
    yield ()
    spreads = name in ("zero0", "zero1", "zero2", "zero3_autoep")
    if not spreads or any(each.startswith("parallel.ep_size=") for each in asked.overrides):
        return
    experts = load_config(asked.config, asked.overrides).run.moe.num_experts
    number = asked.ranks.number
    sizes = [n for n in range(1, min(experts, number) + 1) if experts % n == 0 and number % n == 0]
    yield from ((f"parallel.ep_size={n}",) for n in sizes[:-1])  # the largest is "auto"


def _row(asked: Asked, name: str, ds_config: str | None, settings: tuple[str, ...]) -> Row:
    more = (*settings, *(["parallel.nvme_path=/tmp"] if name == "zero3_nvme" else []))
    try:
        estimate = asked.estimate(ds_config, more)
    except ConfigError as error:
        return Row(name, ds_config, settings, None, None, str(error))
    return Row(name, ds_config, settings, estimate, estimate.that_fits())


def recommended(found: Sequence[Row]) -> Row | None:
    """The fastest strategy that fits; among equally fast ones the first, which is the simplest.

    ZeRO-3 and offloads count only if nothing else fits, and fp16 and disks only if not even those do.
    """
    fitting = [row for row in found if row.fitting is not None]
    usual = [row for row in fitting if not row.is_special] or fitting
    direct = [row for row in usual if not row.is_roundabout] or usual
    return min(direct, key=lambda row: round(row.fitting.hours, 6) if row.fitting else 0.0, default=None)


def command(asked: Asked, row: Row) -> str:
    """The command to type."""
    config = ["--config", asked.config] if asked.config else []
    settings = [*asked.overrides, *row.all_settings]
    settings += ["parallel.nvme_path=FOLDER"] if row.needs_disk else []
    if row.ds_config is None:
        return shlex.join(["storyteller", "train", *config, *settings])
    ds_config = ["--ds_config", row.ds_config]
    ranks = asked.ranks
    where = ["--hostfile", "hosts"] if ranks.nodes > 1 else ["--num_accelerators", str(ranks.per_node)]
    return shlex.join(["storyteller", "launch", *where, "--", *config, *ds_config, *settings])


SCALES = tuple(2**power for power in range(13))
"""1 to 4,096 devices."""


def scaled(asked: Asked, row: Row) -> list[tuple[int, Estimate | ConfigError]]:
    """The run on increasing numbers of devices, each with as many sequences as now: the batch grows with them."""
    assert row.fitting is not None
    plan = row.fitting.plan
    each = plan.micro_batch_size * plan.accumulation_steps
    found: list[tuple[int, Estimate | ConfigError]] = []
    machine = asked.device.per_machine if asked.device.kind != "cpu" else asked.ranks.per_node
    for number in SCALES:
        per_node = min(number, machine)
        there = Asked(asked.config, asked.overrides, asked.device, Ranks(number // per_node, per_node))
        settings = [*row.all_settings, f"train.global_batch_size={each * number}"]
        settings += [f"train.micro_batch_size={plan.micro_batch_size}", "train.gradient_accumulation_steps=null"]
        try:
            ds_config = row.ds_config if number == 1 or row.ds_config else "zero2"
            found.append((number, there.estimate(ds_config, settings)))
        except ConfigError as error:
            found.append((number, error))
    return found
