"""Stop strings: a story ends before the first of them."""

from collections.abc import Iterator, Sequence


class StopStrings:
    """Passes pieces of text on, up to the first stop string.

    The first is the one that is complete first; of several that end at the same place, the longest.

    Args:
        stop: the stop strings; none of them is empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = stop
        self.found = False
        """Whether one of them has ended the text."""

    def before(self, pieces: Iterator[str]) -> Iterator[str]:
        """The text before it. What may still become a stop string is held back until that is decided."""
        held = ""
        for piece in pieces:
            held += piece
            if places := [(held.index(each) + len(each), held.index(each)) for each in self.stop if each in held]:
                self.found = True
                held = held[: min(places)[1]]
                break
            certain = len(held) - max((_beginning(each, held) for each in self.stop), default=0)
            if certain:
                yield held[:certain]
                held = held[certain:]
        if held:
            yield held


def _beginning(stop: str, text: str) -> int:
    """Number of characters at the end of the text that are an incomplete beginning of a stop string."""
    return next(size for size in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:size]))
