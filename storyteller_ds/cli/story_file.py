"""storyteller generate --output: a file of stories that is complete at any time."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from storyteller_ds.durable import is_replaced, write_output
from storyteller_ds.errors import UserError
from storyteller_ds.generation.stepper import Texts
from storyteller_ds.generation.story import Ending, Story
from storyteller_ds.generation.told import told
from storyteller_ds.untrusted import for_terminal

BETWEEN_STORIES = "\n<|endoftext|>\n\n"
SECONDS_BETWEEN_SAVES = 5.0


def write_stories(
    texts: Texts, stories: Iterable[Story], number: int, output: Path, log: Callable[[str], None]
) -> None:
    """Write the stories to a file, in order.

    The finished stories are written every few seconds, and if something ends the command early. An output that cannot
    be replaced, such as a pipe, is written once.

    Args:
        texts: texts of the model that tells the stories.
        stories: see told.
        number: number of stories.
        output: the file.
        log: receives the progress.

    Raises:
        UserError: the file cannot be written; the stories are printed to stdout instead.
    """
    finished: list[str] = []
    cut = 0
    can_be_saved, saved = is_replaced(output), time.monotonic()
    try:
        for story in told(texts, stories):
            finished.append(story.text)
            cut += story.ending is Ending.CONTEXT
            if time.monotonic() - saved >= SECONDS_BETWEEN_SAVES and len(finished) < number:
                if can_be_saved:
                    _try_to_save(finished, output, log)
                log(f"{len(finished)} of {number} stories")
                saved = time.monotonic()
    finally:
        if finished:
            _save(finished, output)
            part = "" if len(finished) == number else f"the first {len(finished)} of "
            log(f"{part}{number} stories: {output}")
    if cut:
        which = "the story" if number == 1 else f"{cut} of {number} stories"
        log(f"the model's context of {story.context_length} tokens ended {which}")


def _text(stories: Sequence[str]) -> str:
    return f"\n{BETWEEN_STORIES}".join(stories) + "\n"


def _try_to_save(stories: Sequence[str], output: Path, log: Callable[[str], None]) -> None:
    try:
        write_output(output, "--output", _text(stories))
    except UserError as error:
        log(f"{error}; it is tried again")


def _save(stories: Sequence[str], output: Path) -> None:
    try:
        write_output(output, "--output", _text(stories))
    except UserError as error:
        print(for_terminal(_text(stories)), end="", flush=True)
        raise UserError(f"{error}; the stories are on stdout instead") from None
