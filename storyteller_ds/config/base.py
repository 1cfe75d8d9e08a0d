"""What every section of a run config shares."""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

_NOT_TEXT = re.compile(r"[\x00\ud800-\udfff]")


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error, not a silent default."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`max_steps: true` is a mistake, though Python would count it as 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError(f"{str(value).lower()} is not a value for {info.field_name}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        """What no 64-bit number, no file name and no UTF-8 file can hold would fail much later."""
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("a number of more than 64 bits")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path) and _NOT_TEXT.search(str(text)):
                raise ValueError("a text with a NUL character, or with bytes that are not UTF-8")
        return value

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        coerce_numbers_to_str=True,  # `tracking.run_name=12` is a name, however YAML reads it
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
