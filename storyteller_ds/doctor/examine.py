"""Runs the checks; a check that itself fails is a finding, too."""

from collections.abc import Iterable
from dataclasses import replace

from storyteller_ds.doctor import folders, libraries, machine, measuring, model, saving, schedule, text
from storyteller_ds.doctor.finding import Check, Finding, from_message, warning
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.errors import StorytellerError

CONFIGURATION: tuple[Check, ...] = (*schedule.CHECKS, *measuring.CHECKS, *saving.CHECKS, *model.CHECKS)
BEFORE_A_RUN: tuple[Check, ...] = (*CONFIGURATION, *text.ON_TOKENS, *folders.QUICK, *machine.QUICK)
"""Checks that take no noticeable time, use no network and start no process."""
ALL: tuple[Check, ...] = (*libraries.CHECKS, *machine.CHECKS, *folders.CHECKS, *CONFIGURATION, *text.CHECKS)
_ORDER = ("error", "warning", "note")


def examine(subject: Subject, checks: Iterable[Check] = ALL) -> list[Finding]:
    """What is wrong, the worst first."""
    return worst_first(finding for check in checks for finding in _of(check, subject))


def worst_first(found: Iterable[Finding]) -> list[Finding]:
    """Errors before warnings before notes."""
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def lines_before_a_run(subject: Subject) -> list[str]:
    """Errors and warnings, one line each; empty if nothing is wrong."""
    return [str(each) for each in examine(subject, BEFORE_A_RUN) if each.severity != "note"]


def _of(check: Check, subject: Subject) -> list[Finding]:
    name = check.__name__
    try:
        return [replace(finding, check=name) for finding in check(subject)]
    except StorytellerError as failure:
        return [replace(from_message(str(failure)), check=name)]
    except Exception as failure:  # a bug in the doctor must not keep a run from starting
        return [
            replace(
                warning(
                    f"the check {name} failed itself ({type(failure).__name__}: {failure})",
                    "look at that by hand, and please report it",
                ),
                check=name,
            )
        ]
