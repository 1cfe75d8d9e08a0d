"""The cache folder for what can be made again: prepared corpora, hub datasets, and what DeepSpeed compiles."""

import os
from pathlib import Path

from storyteller_ds.user_paths import expand_home


def cache_folder(chosen: Path | None = None) -> Path:
    """`chosen` (data.cache_dir), else $STORYTELLER_CACHE, else ~/.cache/storyteller_ds.

    An empty variable counts as unset.

    Raises:
        UserError: the path is in the home folder, and this user has none; or a name in it is too long.
    """
    return expand_home(chosen or os.environ.get("STORYTELLER_CACHE") or "~/.cache/storyteller_ds")
