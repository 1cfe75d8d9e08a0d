"""The folder of what can be made again: prepared corpora, and what DeepSpeed compiles."""

import os
from pathlib import Path

from storyteller_ds.errors import DataError


def cache_folder(chosen: Path | None = None) -> Path:
    """`chosen` (data.cache_dir), else $STORYTELLER_CACHE, else ~/.cache/storyteller_ds.

    A variable that is empty counts as not set.

    Raises:
        DataError: it is in the home folder, and this user has none.
    """
    folder = chosen or Path(os.environ.get("STORYTELLER_CACHE") or "~/.cache/storyteller_ds")
    try:
        return folder.expanduser()
    except RuntimeError:
        raise DataError(
            f"there is no home folder for the cache, {folder}; set data.cache_dir or STORYTELLER_CACHE to a folder "
            "that can be written"
        ) from None
