"""Stories that a program holds in memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storyteller_ds.data.cache import cache_folder
from storyteller_ds.durable import write_output
from storyteller_ds.errors import DataError


def keep_stories(stories: Sequence[str | Mapping[str, Any]], cache_dir: Path | None) -> Path:
    """Write stories to a table in the cache, so that a later run can continue with them.

    Args:
        stories: one text each, or one row each, for data.text_field and data.prompt.
        cache_dir: data.cache_dir.

    Returns:
        The path, for data.source; the same stories give the same path.

    Raises:
        DataError: they are not texts or rows, or the cache cannot be written.
    """
    if not stories:
        raise DataError("data is an empty list; give stories, at least one")
    for number, story in enumerate(stories, start=1):
        if not isinstance(story, str | Mapping):
            raise DataError(
                f"item {number:,} of data is a {type(story).__name__}; give a list of texts, or of rows such as "
                '{"text": …}; for files, give one path, or data.source'
            )
    rows = [{"text": story} if isinstance(story, str) else dict(story) for story in stories]
    try:
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
    except UnicodeEncodeError as error:
        raise DataError(f"a story in data has half a character ({error.reason}); give text that can be UTF-8") from None
    except TypeError as error:
        raise DataError(f"a row in data has what JSON does not: {error}; give texts and numbers") from None
    path = cache_folder(cache_dir) / "given" / f"{name}.jsonl"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"the stories in data cannot be kept in {path.parent}: {error.strerror}; set data.cache_dir to another "
                "folder"
            ) from None
        write_output(path, "data", text)  # every rank may do this at once
    return path
