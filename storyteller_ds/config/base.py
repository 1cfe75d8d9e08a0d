"""What every section of a run config shares."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error, not a silent default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        coerce_numbers_to_str=True,  # `tracking.run_name=12` is a name, however YAML reads it
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
