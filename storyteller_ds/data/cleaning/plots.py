"""Plots of a cleaned corpus: how long its stories are, and how often its words occur."""

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from storyteller_ds.png import write_png

LENGTHS, VOCABULARY = "card-lengths.png", "card-vocabulary.png"
_INCHES = (6.0, 4.0)


def save_lengths(words: NDArray[np.uint32], path: Path) -> None:
    """Save a histogram of words per story.

    Args:
        words: [stories] number of words of each.
        path: path of the PNG.
    """
    figure = Figure(_INCHES, layout="constrained")
    axes = figure.subplots()
    widest = words.max() > 20 * np.median(words)
    bins = np.geomspace(max(1, words.min()), words.max() + 1, 60) if widest else np.linspace(0, words.max() + 1, 60)
    axes.hist(words, bins=bins.tolist())
    if widest:
        axes.set_xscale("log")
    axes.axvline(float(np.median(words)), color="black", linestyle="--", label=f"median {np.median(words):,.0f}")
    axes.set(xlabel="words of a story", ylabel="stories")
    axes.legend()
    write_png(figure, path)


def save_vocabulary(vocabulary: Counter[str], path: Path) -> None:
    """Plot how often each word occurs, most frequent first, and what share of the text the first ones make up.

    Args:
        vocabulary: how often each word occurs.
        path: path of the PNG.
    """
    counts = np.sort(np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary)))[::-1]
    ranks = np.arange(1, len(counts) + 1)
    figure = Figure(_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.loglog(ranks, counts, label="occurrences")
    axes.set(xlabel="rank of a word", ylabel="occurrences")
    share = axes.twinx()
    share.plot(ranks, np.cumsum(counts) / counts.sum(), color="C1", label="share of the text up to this rank")
    share.set(ylabel="share of the text", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2)
    write_png(figure, path)
