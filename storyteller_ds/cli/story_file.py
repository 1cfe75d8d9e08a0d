"""storyteller generate --output: a file of stories, whole at any time."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from storyteller_ds.durable import is_replaced, write_output
from storyteller_ds.errors import UserError
from storyteller_ds.generation.story import Ending, Story
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.generation.told import told
from storyteller_ds.untrusted import for_terminal

BETWEEN_STORIES = "\n<|endoftext|>\n\n"
SECONDS_BETWEEN_SAVES = 5.0


def write_stories(model: StoryModel, stories: Sequence[Story], output: Path, log: Callable[[str], None]) -> None:
    """Tell the stories into a file, in their order.

    Every few seconds, and if something ends it half-way, the file gets those that are finished. What cannot be
    replaced, such as a pipe, gets them once.

    Args:
        model: whose they are.
        stories: at least one, not yet told.
        output: the file.
        log: gets the progress.

    Raises:
        UserError: the file cannot be written; the stories are on stdout instead.
    """
    finished: list[Story] = []
    can_be_saved, saved = is_replaced(output), time.monotonic()
    try:
        for story in told(model, stories):
            finished.append(story)
            if time.monotonic() - saved >= SECONDS_BETWEEN_SAVES and len(finished) < len(stories):
                if can_be_saved:
                    _try_to_save(finished, output, log)
                log(f"{len(finished)} of {len(stories)} stories")
                saved = time.monotonic()
    finally:
        if finished:
            _save(finished, output)
            part = "" if len(finished) == len(stories) else f"the first {len(finished)} of "
            log(f"{part}{len(stories)} stories: {output}")
    if cut := sum(story.ending is Ending.CONTEXT for story in stories):
        which = "the story" if len(stories) == 1 else f"{cut} of {len(stories)} stories"
        log(f"the model's context of {stories[0].context_length} tokens ended {which}")


def _text(stories: Sequence[Story]) -> str:
    return f"\n{BETWEEN_STORIES}".join(story.text for story in stories) + "\n"


def _try_to_save(stories: Sequence[Story], output: Path, log: Callable[[str], None]) -> None:
    try:
        write_output(output, "--output", _text(stories))
    except UserError as error:
        log(f"{error}; it is tried again")


def _save(stories: Sequence[Story], output: Path) -> None:
    try:
        write_output(output, "--output", _text(stories))
    except UserError as error:
        print(for_terminal(_text(stories)), end="", flush=True)
        raise UserError(f"{error}; the stories are on stdout instead") from None
