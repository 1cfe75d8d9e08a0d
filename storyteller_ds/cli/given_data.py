"""What --data names, and the settings behind it that say how it is read."""

from typing import TYPE_CHECKING

from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    from storyteller_ds.config.data import DataConfig


def given_data(data: str | None, overrides: tuple[str, ...]) -> "DataConfig | None":
    """How --data is read; None: not given.

    Raises:
        UserError: a setting is not one of data, or there is no --data that it could be about.
    """
    from storyteller_ds.config.load import load_config

    if others := [each for each in overrides if not each.startswith("data.")]:
        raise UserError(f"{others[0]}: only settings of data count here, such as data.split=line")
    if data is None:
        if overrides:
            raise UserError(f"{overrides[0]}: settings of data say how --data is read; give --data")
        return None
    return load_config(None, overrides).run.data.model_copy(update={"source": "builtin", "validation": data})
