"""The folder of what can be made again: prepared corpora, datasets of the hub, and what DeepSpeed compiles."""

import os
from pathlib import Path

from storyteller_ds.user_paths import expand_home


def cache_folder(chosen: Path | None = None) -> Path:
    """`chosen` (data.cache_dir), else $STORYTELLER_CACHE, else ~/.cache/storyteller_ds.

    A variable that is empty counts as not set.

    Raises:
        UserError: it is in the home folder, and this user has none.
    """
    return expand_home(chosen or os.environ.get("STORYTELLER_CACHE") or "~/.cache/storyteller_ds")
