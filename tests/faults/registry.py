"""The Fault class and the list of all faults."""

from collections.abc import Callable
from dataclasses import dataclass

from .case import Case


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and what is promised in that case."""

    name: str
    promise: str
    function: Callable[[Case], None]
    """Causes the fault, checks the promise, and records in the case what it sees."""
    quick: bool = False
    """Whether it also runs in the normal suite."""


FAULTS: list[Fault] = []
"""Filled by the modules faults_*.py, in the order of the table in docs/reliability.md."""


def fault(name: str, promise: str, quick: bool = False) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register the decorated function as a fault."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        if any(other.name == name for other in FAULTS):
            raise ValueError(f"two faults are called '{name}'")
        FAULTS.append(Fault(name, promise, function, quick))
        return function

    return register
