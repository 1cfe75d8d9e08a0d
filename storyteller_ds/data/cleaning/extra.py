"""The libraries of the extra `clean`."""

import importlib.util

from storyteller_ds.errors import UserError

_LIBRARIES = ("ftfy", "py3langid", "rensa")


def require_libraries() -> None:
    """Raises UserError if one of them is not installed."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"preprocess needs {', '.join(missing)}; pip install 'storyteller_ds[clean]'")
