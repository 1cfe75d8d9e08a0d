"""What every section of a run config shares.

A value has the type it was written with: only true and false are booleans, a number in quotes is a text, null is
nothing. What may be written in more than one way: a whole number (1000, 1e3, 1000.0), a list for a tuple, a text for a
path, and a bare number for a name (`run_name: 1.10`), which is then taken as it was typed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

_NOT_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_EXACT = 2**53
"""Every whole number below it is exact as a float."""


class WrittenInt(int):
    """A whole number that remembers how it was typed: 0012, 2024_01_05."""

    typed: str


class WrittenFloat(float):
    """A number that remembers how it was typed: 1.10, 1e3."""

    typed: str


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error, not a silent default."""

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        return _as_meant(value, set(_types(cls.model_fields[info.field_name or ""].annotation)))

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        """Refuse what no 64-bit number, file name or UTF-8 file can hold: it would fail much later."""
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("a number of more than 64 bits")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path) and _NOT_TEXT.search(str(text)):
                raise ValueError("a text with a NUL character, or with bytes that are not UTF-8")
        return value

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def whole_number(value: Any) -> Any:
    """1e3 and 1000.0 as the int 1000; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def _as_meant(value: Any, types: set[Any]) -> Any:
    """The value as one of the types, where it may be written in more than one way; else as it is."""
    if isinstance(value, list | tuple) and tuple in types:
        return tuple(_as_meant(each, types) for each in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if types & {str, Path}:
            value = value.typed if isinstance(value, WrittenInt | WrittenFloat) else str(value)
        elif int in types and float not in types:
            value = whole_number(value)
        elif isinstance(value, WrittenFloat):
            value = float(value)
    return Path(value) if isinstance(value, str) and Path in types else value


def _types(annotation: Any) -> Iterator[Any]:
    """Every type in an annotation: int and None of `int | None`, tuple and str of `tuple[str, ...]`."""
    yield getattr(annotation, "__origin__", annotation)
    for part in get_args(annotation):
        yield from _types(part)
