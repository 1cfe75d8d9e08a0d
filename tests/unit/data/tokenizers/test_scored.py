"""Tokens with scores: the tokenizer gives the same results as llama2.c's own encoder and decoder."""

import random
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from storyteller_ds.data.tokenizers.scored import BYTE_TOKENS, ScoredToken, make_tokenizer, scored_tokens
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import parse_tokenizer
from storyteller_ds.errors import DataError

Tokens = list[tuple[bytes, float]]
ODD = ["", " ", "  a  b ", "\n\n\t", "\r", "\x00\x01\x7f", "é", "naïve café", "🐻🐻", "\u2581Once", "<s>", "</s>"]
ODD += [END_OF_TEXT, "<0x41>", "a\u0301", "\ufeffx", "日本語", "“Hi!” said Tim…", "\U0010ffff", "x" * 200, " " * 50]


def read_file(path: Path) -> Tokens:
    """Read a tokenizer.bin the way run.c does."""
    content, place, tokens = path.read_bytes(), 4, []
    while place < len(content):
        score, length = struct.unpack_from("<fI", content, place)
        place += 8 + length
        tokens.append((content[place - length : place], score))
    return tokens


def encode_as_run_c(text: str, tokens: Tokens) -> list[int]:
    """The algorithm of encode() in run.c."""
    content = text.encode()
    ids = {token: i for i, (token, _) in enumerate(tokens)}
    found = [ids[b" "]] if content else []
    start = 0
    while start < len(content):
        end = start + 1
        while end < len(content) and content[end] & 0xC0 == 0x80 and end - start < 4:
            end += 1
        character = content[start:end]
        found += [ids[character]] if character in ids else [byte + 3 for byte in character]
        start = end
    while True:
        best, place, union = -1e10, -1, -1
        for i, (left, right) in enumerate(pairwise(found)):
            candidate = ids.get(tokens[left][0] + tokens[right][0], -1)
            if candidate >= 0 and tokens[candidate][1] > best:
                best, place, union = tokens[candidate][1], i, candidate
        if place < 0:
            return found
        found[place : place + 2] = [union]


def decode_as_run_c(ids: list[int], tokens: Tokens) -> bytes:
    """The algorithm of decode() in run.c; `ids` start with the token that begins a text."""
    text = b""
    for previous, i in pairwise(ids):
        piece = tokens[i][0]
        if previous == 1:
            piece = piece.removeprefix(b" ")
        text += bytes([i - 3]) if 3 <= i < 259 else piece
    return text


def tokenizer_of(tokens: Tokens) -> Tokenizer:
    scored = [ScoredToken(token.decode(), score) for token, score in tokens]
    scored[1] = ScoredToken(END_OF_TEXT, 0.0)
    return make_tokenizer(scored)


def small_tokens(*texts: tuple[str, float]) -> Tokens:
    head = ["<unk>", "\n<s>\n", "\n</s>\n", *BYTE_TOKENS]
    return [*((text.encode(), 0.0) for text in head), *((text.encode(), score) for text, score in texts)]


def check(tokenizer: Tokenizer, tokens: Tokens, text: str) -> None:
    ids = encode_as_run_c(text, tokens)
    assert tokenizer.encode(text) == ids, repr(text)
    assert tokenizer.decode([1, *ids]).encode() == decode_as_run_c([1, *ids], tokens) == text.encode()


@pytest.fixture(scope="module")
def tok512(shared_folder) -> Tokens:
    return read_file(shared_folder / "models" / "tok512.bin")


def test_real_stories_become_the_same_tokens(tok512, shared_folder):
    tokenizer, rng = tokenizer_of(tok512), random.Random(0)
    stories = (shared_folder / "data" / "tinystories_val.txt").read_text()
    for _ in range(60):
        start = rng.randrange(len(stories) - 300)
        check(tokenizer, tok512, stories[start : start + 300])
    whole = [stories[:1000], stories[-1000:]]
    assert tokenizer.encode_batch(whole) == [encode_as_run_c(story, tok512) for story in whole]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_too(tok512, text):
    check(tokenizer_of(tok512), tok512, text)


def test_random_bytes_of_utf8_too(tok512):
    tokenizer, rng = tokenizer_of(tok512), random.Random(1)
    ranges = [(1, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    for _ in range(200):
        check(tokenizer, tok512, "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 40))))


def test_random_vocabularies_and_scores_too():
    rng = random.Random(2)
    for _ in range(100):
        texts = {"".join(rng.choices("ab ", k=rng.randint(2, 5))) for _ in range(12)} | {"a", "b", " "}
        scores = rng.sample(range(-50, 0), len(texts))
        tokens = small_tokens(*zip(sorted(texts), map(float, scores), strict=True))
        tokenizer = tokenizer_of(tokens)
        for _ in range(20):
            check(tokenizer, tokens, "".join(rng.choices("ab ", k=rng.randint(1, 20))))


def test_of_unions_that_overlap_the_left_one_is_made():
    # "aba" is both ab + a and a + ba; with the merges the other way around, the result would be ab aba b.
    tokens = small_tokens((" ", -9.0), ("a", -8.0), ("b", -7.0), ("ab", -1.0), ("aba", -2.0))
    check(tokenizer_of(tokens), tokens, "abaab")


def test_its_json_is_a_tokenizer_of_ours(tok512):
    tokenizer = tokenizer_of(tok512)
    again = parse_tokenizer(tokenizer.to_json(), "here", "fix")
    assert again.to_json() == tokenizer.to_json()
    assert (again.end_of_text, again.vocab_size, again.unknown, again.spells_bytes) == (1, 512, None, False)
    [(ids, sizes)] = again.encode_with_bytes(["Once, naïve 🐻"])
    assert sum(sizes) == len("Once, naïve 🐻".encode())
    assert len(sizes) == len(ids) + 1


def test_the_scores_come_back(tok512):
    again = scored_tokens(tokenizer_of(tok512))
    assert again is not None
    assert [(token.text.encode(), token.score) for token in again[3:]] == tok512[3:]
    assert again[1].text == END_OF_TEXT


def test_other_kinds_have_no_scores():
    from tests.unit.data.tokenizers.test_trained import bpe, char

    assert scored_tokens(bpe()) is None
    assert scored_tokens(char()) is None


SPACE = (" ", -9.0)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (small_tokens(SPACE)[:200], "tokens 3 to 258 are not the bytes"),
        (small_tokens(("a", -1.0)), "or no space"),
        (small_tokens(SPACE, ("a", -1.0), ("a", -2.0)), "the token 'a' is given twice"),
        (small_tokens(SPACE, ("a", -1.0), ("a ", float("nan"))), "the score of the token 'a ' is not a number"),
        (small_tokens(SPACE, ("a", -1.0), ("a ", -3.0), (" a", -3.0)), "2 tokens that are unions have the score -3"),
    ],
)
def test_what_cannot_be_one_is_refused(tokens, message):
    with pytest.raises(DataError, match=message):
        tokenizer_of(tokens)
