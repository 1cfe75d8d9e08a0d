"""The types of a finding and of a check."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from storyteller_ds.doctor.subject import Subject

Severity = Literal["error", "warning", "note"]
"""It cannot work; it works, but probably not as intended; it is worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    severity: Severity
    evidence: str
    """What was seen, with the numbers."""
    fix: str
    """The setting or the command that fixes it."""
    repair: Callable[[], str] | None = None
    """Fixes it without risk and returns what was done; raises OSError. None: a person has to decide."""
    check: str = ""
    """Name of the check that found it."""

    def __str__(self) -> str:
        return f"{self.severity}: {self.evidence}; {self.fix}"


Check = Callable[["Subject"], Iterator[Finding]]
"""Looks at one thing; its function's name is the name of the check."""


def error(evidence: str, fix: str, repair: Callable[[], str] | None = None) -> Finding:
    """A finding about something that cannot work."""
    return Finding("error", evidence, fix, repair)


def warning(evidence: str, fix: str, repair: Callable[[], str] | None = None) -> Finding:
    """A finding about something that is probably a mistake."""
    return Finding("warning", evidence, fix, repair)


def note(evidence: str, fix: str) -> Finding:
    """A finding about something that may be intended."""
    return Finding("note", evidence, fix)


def from_message(message: str) -> Finding:
    """The finding for one of our errors, whose message has the form `what is wrong; how to fix it`."""
    evidence, _, fix = message.rpartition("; ")
    return error(evidence or message, fix if evidence else "see the message")
