"""What a fault is, and the list of all of them."""

from collections.abc import Callable
from dataclasses import dataclass

from .case import Case


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and what is promised then."""

    name: str
    promise: str
    function: Callable[[Case], None]
    """Makes it go wrong and checks the promise; what it sees, it tells the case."""
    quick: bool = False
    """Also in the normal suite."""


FAULTS: list[Fault] = []
"""Filled by the modules faults_*.py, in the order of the table in docs/reliability.md."""


def fault(name: str, promise: str, quick: bool = False) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register the function below as a fault."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        if any(other.name == name for other in FAULTS):
            raise ValueError(f"two faults are called '{name}'")
        FAULTS.append(Fault(name, promise, function, quick))
        return function

    return register
