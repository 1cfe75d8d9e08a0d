"""Out of memory, in whatever words it is reported, as one line that says what to lower."""

import contextlib
import errno
import re
from collections.abc import Iterator

from storyteller_ds.errors import OutOfMemory

_WORDS = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "Storage size calculation overflowed",
)
"""CUDA, MPS and NCCL; torch's CPU allocator on Linux, and on Windows; C++; cuBLAS; torch, beyond 64 bits."""
_NO_ROOM_FOR_A_LIBRARY = "failed to map segment from shared object"
"""glibc, of a library that Python imports. With a reason behind it, such as of a noexec mount, it is no memory."""
_AMOUNT = re.compile(r"(?:tried|unable) to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


@contextlib.contextmanager
def memory_hint(hint: str, where: str = "") -> Iterator[None]:
    """Turn what is raised in the block when memory runs out into OutOfMemory, which ends with this hint.

    Args:
        hint: what to lower, in the order that helps.
        where: of several ranks, which.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        amount = _AMOUNT.search(str(error))
        tried = f" (tried to allocate {_in_words(amount[1])})" if amount else ""
        raise OutOfMemory(f"out of memory{where}{tried}; {hint}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python, torch or a driver says that memory has run out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError) and str(error).endswith(_NO_ROOM_FOR_A_LIBRARY):
        return True
    return isinstance(error, MemoryError) or any(words in str(error) for words in _WORDS)


def _in_words(amount: str) -> str:
    number, _, unit = amount.partition(" ")
    return f"{int(number) / 2**20:,.1f} MiB" if unit == "bytes" else amount
