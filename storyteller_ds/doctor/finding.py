"""What a check has found, and what a check is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from storyteller_ds.doctor.subject import Subject

Severity = Literal["error", "warning", "note"]
"""It cannot work; it works, and probably not as meant; it is worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    severity: Severity
    evidence: str
    """What was seen, with its figures."""
    fix: str
    """The setting or the command that fixes it."""
    repair: Callable[[], str] | None = None
    """Mends it without a risk, and returns what was done; raises OSError. None: a person has to decide."""
    check: str = ""
    """Name of the check that has found it."""

    def __str__(self) -> str:
        return f"{self.severity}: {self.evidence}; {self.fix}"


Check = Callable[["Subject"], Iterator[Finding]]
"""Looks at one thing, named by its function."""


def error(evidence: str, fix: str, repair: Callable[[], str] | None = None) -> Finding:
    """A finding that cannot work."""
    return Finding("error", evidence, fix, repair)


def warning(evidence: str, fix: str, repair: Callable[[], str] | None = None) -> Finding:
    """A finding that is probably a mistake."""
    return Finding("warning", evidence, fix, repair)


def note(evidence: str, fix: str) -> Finding:
    """A finding that may be meant."""
    return Finding("note", evidence, fix)


def from_message(message: str) -> Finding:
    """An error of ours, whose message is `what is wrong; how to fix it`."""
    evidence, _, fix = message.rpartition("; ")
    return error(evidence or message, fix if evidence else "see the message")
