"""Stories that a program has in memory."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from storyteller_ds.data.cache import cache_folder
from storyteller_ds.data.sources.story_ends import MARKER
from storyteller_ds.durable import write_output
from storyteller_ds.errors import DataError


def keep_stories(stories: Sequence[str], cache_dir: Path | None) -> Path:
    """Write stories to a text file in the cache, so that a later run can continue with them.

    Args:
        stories: one text each.
        cache_dir: data.cache_dir.

    Returns:
        The path, for data.source; the same stories have the same.

    Raises:
        DataError: they are not texts, or the cache cannot be written.
    """
    if not stories or not all(isinstance(story, str) for story in stories):
        raise DataError("data is not a list of stories; give a list of texts, at least one")
    text = "".join(f"{story}\n{MARKER}\n" for story in stories)
    try:
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
    except UnicodeEncodeError as error:
        raise DataError(f"a story in data has half a character ({error.reason}); give text that can be UTF-8") from None
    path = cache_folder(cache_dir) / "given" / f"{name}.txt"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"the stories in data cannot be kept in {path.parent}: {error.strerror}; set data.cache_dir to another "
                "folder"
            ) from None
        write_output(path, "data", text)  # every rank may do it at once
    return path
