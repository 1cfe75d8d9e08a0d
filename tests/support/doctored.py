"""Subjects for the doctor's checks, on a made-up machine."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from storyteller_ds.config import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.doctor.examine import ALL, examine
from storyteller_ds.doctor.finding import Finding
from storyteller_ds.doctor.machine_facts import MachineFacts
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.doctor.text_facts import TextFacts

NOW = 1_800_000_000.0
HEALTHY_TEXT = TextFacts(5_000_000, 250.0, 250_000, 2048, sequences=19_531)


@dataclass(frozen=True)
class MadeUp(MachineFacts):
    """A machine with these figures."""

    free: int = 10**12
    files: int | None = 10**7
    capability: tuple[int, int] | None = None
    memory: int = 64 * 10**9
    clock: float = NOW
    rate: float | None = None
    half: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)

    def free_bytes(self, folder: Path) -> int:
        return self.free

    def free_files(self, folder: Path) -> int | None:
        return self.files

    def compute_capability(self, device: torch.device) -> tuple[int, int] | None:
        return self.capability

    def formats(self, device: torch.device) -> list[torch.dtype]:
        return [torch.float32, *self.half]

    def device_bytes(self, device: torch.device) -> int | None:
        return self.memory

    def product_rate(self, device: torch.device) -> float | None:
        return self.rate

    def interfaces(self) -> list[str]:
        return ["eth0", "lo"]

    def now(self) -> float:
        return self.clock


def subject_of(
    folder: Path,
    *overrides: str,
    config: str = "quickstart",
    ds_config: str | os.PathLike[str] | dict[str, Any] | None = None,
    ranks: int = 1,
    device: str = "cpu",
    text: TextFacts | None = HEALTHY_TEXT,
    machine: MachineFacts | None = None,
    **others: Any,
) -> Subject:
    """A healthy run, except for the given arguments."""
    loaded = load_config(config, overrides, ds_config=ds_config, ranks=ranks)
    plan = make_plan(loaded.run, ranks, loaded)
    return Subject(loaded, plan, torch.device(device), folder / "run", text, machine=machine or MadeUp(), **others)


def found_by(subject: Subject, name: str) -> Finding | None:
    """Run all checks; returns the finding of the one with this name."""
    found = [each for each in examine(subject, ALL) if each.check == name]
    assert len(found) <= 1, found
    return found[0] if found else None


def with_text(subject: Subject, **changed: Any) -> Subject:
    """The same run on a changed text."""
    assert subject.text is not None
    return replace(subject, text=replace(subject.text, **changed))
