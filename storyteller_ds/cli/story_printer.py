"""A story on stdout, as it comes."""

import itertools
import shutil
import sys

from storyteller_ds.cli.word_wrap import WordWrap
from storyteller_ds.generation.story import Story
from storyteller_ds.untrusted import for_terminal


def print_story(story: Story) -> None:
    """Print prompt and continuation; on a terminal, lines are broken between words."""
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
