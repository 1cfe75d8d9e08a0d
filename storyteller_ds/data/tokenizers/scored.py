"""SentencePiece's BPE (Kudo and Richardson 2018) in the `tokenizers` library: tokens with scores instead of merges.

A text gets a space in front and is split into characters; those that are not tokens become the tokens of their bytes.
Then the two neighbors whose concatenation is the token with the best score are merged into it, the leftmost two if
there are several, and so on until no concatenation is a token.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from storyteller_ds.data.tokenizers.tokenizer import BYTES, END_OF_TEXT, Tokenizer
from storyteller_ds.errors import DataError

UNKNOWN, BEGIN, END = 0, 1, 2
"""Ids of the tokens that are not text. BEGIN comes before every text; here, it is END_OF_TEXT."""
FIRST_BYTE = 3
FIRST_TEXT = FIRST_BYTE + BYTES
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(BYTES)]
NEVER = -1e10
"""A token with this score or a lower one is never merged from two others (llama2.c, run.c)."""


class ScoredToken(NamedTuple):
    """A token and its score; spaces in it are plain spaces."""

    text: str
    score: float


def make_tokenizer(tokens: Sequence[ScoredToken], special_tokens: Sequence[str] = ()) -> Tokenizer:
    """Make a tokenizer of these tokens, given in the order of their ids, with END_OF_TEXT at BEGIN.

    Args:
        tokens: begin with three that are not text, followed by the bytes.
        special_tokens: more tokens that are not text, which get the ids after these.

    Raises:
        DataError: they do not begin with three that are not text and 256 bytes, lack the space, or are not distinct; or
            two with the same score compete, which a list of merges cannot express.
    """
    texts = [token.text for token in tokens]
    ids = {text: i for i, text in enumerate(texts)}
    if texts[FIRST_BYTE:FIRST_TEXT] != BYTE_TOKENS:
        raise DataError(f"tokens {FIRST_BYTE} to {FIRST_TEXT - 1} are not the bytes <0x00> to <0xFF>")
    if texts[BEGIN] != END_OF_TEXT or " " not in ids:
        raise DataError(f"there is no {END_OF_TEXT} at {BEGIN}, or no space")
    if len(ids) < len(texts):
        text = next(text for i, text in enumerate(texts) if ids[text] != i)
        raise DataError(f"the token {text!r:.80} is given twice")
    inner = tokenizers.Tokenizer(models.BPE(ids, _merges(tokens, ids), byte_fallback=True))
    inner.normalizer = normalizers.Prepend(" ")
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = [AddedToken(text, normalized=False, special=True) for text in (END_OF_TEXT, *special_tokens)]
    inner.add_special_tokens(special)
    return Tokenizer(inner)


def scored_tokens(tokenizer: Tokenizer) -> list[ScoredToken] | None:
    """Tokens from which make_tokenizer makes this tokenizer; None: it is of another kind.

    Scores are 0, -1, -2 and so on, in the order of the merges, followed by tokens that no merge makes.
    """
    state = json.loads(tokenizer.to_json())
    model = state["model"]
    if model["type"] != "BPE" or not model["byte_fallback"]:
        return None
    texts = sorted(model["vocab"], key=model["vocab"].__getitem__)
    ranks: dict[str, int] = {}
    for text in [*("".join(pair) for pair in model["merges"]), *texts[FIRST_TEXT:]]:
        ranks.setdefault(text, len(ranks))
    tokens = [ScoredToken(text, -float(ranks[text]) if i >= FIRST_TEXT else 0.0) for i, text in enumerate(texts)]
    try:
        return tokens if make_tokenizer(tokens).to_json() == tokenizer.to_json() else None
    except DataError:
        return None


def _merges(tokens: Sequence[ScoredToken], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens whose concatenation is a token, in the order in which they are merged."""
    found = []
    for i, (text, score) in enumerate(tokens):
        if math.isnan(score):
            raise DataError(f"the score of the token {text!r:.80} is not a number")
        # Pairs that make the same token would compete where they overlap; no text is known in which they do.
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        if i == BEGIN or score <= NEVER or not pairs:
            continue
        found.append((score, pairs))
    scores = Counter(score for score, _ in found)
    if found and (most := scores.most_common(1)[0])[1] > 1:
        raise DataError(f"{most[1]} tokens that are unions have the score {most[0]:g}; they have to differ")
    found.sort(key=lambda each: -each[0])
    return [pair for _, pairs in found for pair in pairs]
