"""The text that --data names, and the settings that say how to read it."""

from typing import TYPE_CHECKING

from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    from storyteller_ds.config.data import DataConfig


def given_data(data: str | None, overrides: tuple[str, ...]) -> "DataConfig | None":
    """The config for reading --data, or None if it is not given.

    Raises:
        UserError: a setting does not belong to data, or there are settings without --data.
    """
    from storyteller_ds.config.load import load_config

    if others := [each for each in overrides if not each.startswith("data.")]:
        raise UserError(f"{others[0]}: only settings of data count here, such as data.split=line")
    if data is None:
        if overrides:
            raise UserError(f"{overrides[0]}: settings of data say how --data is read; give --data")
        return None
    return load_config(None, overrides).run.data.model_copy(update={"source": "builtin", "validation": data})
