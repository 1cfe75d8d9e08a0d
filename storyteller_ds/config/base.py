"""What every section of a run config shares."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


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

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        coerce_numbers_to_str=True,  # `tracking.run_name=12` is a name, however YAML reads it
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
