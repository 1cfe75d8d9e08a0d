"""Other people's implementations, one file per source, built with the weights of the case.

A builder raises Unavailable if its package is missing or does not suit the device; its row then has the reason.
"""

import importlib
from types import ModuleType

from benchmarks.operations.case import Unavailable


def package(name: str) -> ModuleType:
    """Import a peer's module.

    Raises:
        Unavailable: its package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise Unavailable(f"not available: {top} needs {error.name}") from None
        raise Unavailable("not installed" if error.name == top else f"not available: no {error.name}") from None


def member(module: str, name: str) -> object:
    """A class or function of a peer.

    Raises:
        Unavailable: the package is not installed, or this version of it has no such thing.
    """
    there = package(module)
    if not hasattr(there, name):
        raise Unavailable(f"not available: this version of {module.partition('.')[0]} has no {name}")
    return getattr(there, name)
