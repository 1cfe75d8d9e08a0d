"""Prints a story to stdout as it is generated."""

import itertools
import shutil
import sys
import time
from collections.abc import Callable

from storyteller_ds.cli.word_wrap import WordWrap
from storyteller_ds.generation.story import Ending, Story
from storyteller_ds.untrusted import for_terminal

_ENDED_BY = {
    Ending.END: "the story came to its end",
    Ending.STOP: "--stop ended the story",
    Ending.LENGTH: "--max_new_tokens ended the story",
    Ending.CONTEXT: "the model's context of {} tokens ended the story",
}


def print_story(story: Story, log: Callable[[str], None]) -> None:
    """Print prompt and continuation; on a terminal, lines are broken between words.

    Args:
        story: a story that has not been generated yet.
        log: receives a line after the story: tokens, speed, and why it ended.
    """
    start = time.perf_counter()
    _print(story)
    tokens, seconds = len(story.token_texts), time.perf_counter() - start
    assert story.ending is not None
    ended_by = _ENDED_BY[story.ending].format(story.context_length)
    log(f"{tokens} tokens, {tokens / seconds:,.0f} tokens/s: {ended_by}")


def _print(story: Story) -> None:
    pieces = map(for_terminal, itertools.chain([story.prompt], story))
    if not sys.stdout.isatty():
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
        return
    wrap = WordWrap(shutil.get_terminal_size().columns)
    for piece in pieces:
        print(wrap.feed(piece), end="", flush=True)
    print(wrap.rest(), flush=True)
