"""Plots a comparison of tokenizers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from storyteller_ds.data.tokenizers.compare import Measured

INCHES = (11.0, 4.0)
"""Width and height."""


def draw(measured: Sequence[Measured]) -> Figure:
    """Plot bytes per token, and how often each token is used, most frequent first."""
    figure = Figure(INCHES, layout="constrained")
    bars, curves = figure.subplots(1, 2)
    for place, each in enumerate(measured):
        color = f"C{place}"
        bars.barh(place, each.bytes_per_token, color=color)
        counts = np.sort(each.counts_V[each.counts_V > 0])[::-1]
        curves.plot(np.arange(1, len(counts) + 1), counts, color=color, label=each.name)
        curves.axvline(each.vocab_size, color=color, linestyle=":")
    bars.set_yticks(range(len(measured)), [each.name for each in measured])
    bars.invert_yaxis()
    bars.set_xlabel("bytes per token")
    curves.set_xscale("log")
    curves.set_yscale("log")
    curves.set_xlabel("token, by frequency (dotted: size of the vocabulary)")
    curves.set_ylabel("times used")
    curves.legend()
    return figure
