"""Sequences cut from a token stream."""

from storyteller_ds.data.batching.packing import CutStream
from storyteller_ds.data.batching.sequences import Sequences
from storyteller_ds.data.shards import TokenStream


def cut(stream: TokenStream, length: int, keeps_rest: bool = False, document_start: int | None = None) -> Sequences:
    """Cut a whole stream into sequences of `length` tokens."""
    return Sequences(stream, CutStream(len(stream), length, keeps_rest), document_start)
