"""Reading back an atlas from the JSON that report.as_json writes."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from storyteller_ds.atlas.atlas import Atlas
from storyteller_ds.untrusted import UntrustedFileError, read_text
from storyteller_ds.validation_errors import first_problem

_BYTES = 1 << 26
"""Largest file that is read (bytes)."""


def read_atlas(path: Path) -> Atlas:
    """The atlas in a file.

    Raises:
        UntrustedFileError: it is not an atlas.
    """
    try:
        return TypeAdapter(Atlas).validate_json(read_text(path, _BYTES))
    except ValidationError as error:
        raise UntrustedFileError(f"{path} is not an atlas ({first_problem(error)}); make it again") from None
