"""Generating many stories, several at a time."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from storyteller_ds.generation.batch import Batch
from storyteller_ds.generation.stepper import Texts
from storyteller_ds.generation.story import Story

BATCH = 16
"""Stories that are continued together."""


def told(texts: Texts, stories: Iterable[Story]) -> Iterator[Story]:
    """Generate stories, and yield each when it is complete, in their order.

    Args:
        texts: from the model that generates the stories.
        stories: none of them started; each is taken when its batch is generated.
    """
    coming = iter(stories)
    while group := list(islice(coming, BATCH)):
        together = [story for story in group if story.continuation.config.past_context == "stop"]
        if together:
            batch = Batch([story.continuation for story in together], texts)
            for place, story in enumerate(together):
                story.read_from(batch.ids(place))
        # A piece of each in turn, so that a stop string can end one before the others are complete.
        waiting, going = deque(group), [iter(story) for story in group]
        while waiting:
            going = [pieces for pieces in going if next(pieces, None) is not None]
            while waiting and waiting[0].ending is not None:
                yield waiting.popleft()
