"""Text in pieces: never half a character, and nothing lost."""

import random

import pytest

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.tokenizer import Tokenizer, train_tokenizer
from storyteller_ds.generation.decode import prompt_ids, stream_text

CORPUS = [
    "Es war einmal ein Bär, der übte Flöte. 🐻🎶",
    "L'été, l'élève rêvait à la forêt — où était-elle ? 🌲",
    "Zoë naïvely ate jalapeños, piñatas and crème brûlée. 😀😀",
    "The end. ☕️ Ω 日本語 👩‍👩‍👧",
]  # fmt: skip
BROKEN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module", params=[257, 320], ids=["bytes", "merges"])
def tokenizer(request) -> Tokenizer:
    """Without a merge every byte is a token of its own; with some, tokens hold parts of characters."""
    return train_tokenizer(TokenizerConfig(vocab_size=request.param), CORPUS)


def pieces(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> list[str]:
    return list(stream_text(tokenizer, prompt, iter(ids)))


@pytest.mark.parametrize("text", CORPUS)
@pytest.mark.parametrize("prompt", ["", "Once, é", "日"])
def test_pieces_join_to_the_text_and_none_is_broken(tokenizer, text, prompt):
    text_so_far = pieces(tokenizer, prompt, tokenizer.encode(text))
    assert "".join(text_so_far) == text
    assert not any(BROKEN in piece for piece in text_so_far)
    assert len(text_so_far) > len(text) / 4, "it streams"


def test_naive_decoding_would_be_broken(tokenizer):
    ids = tokenizer.encode(CORPUS[0])
    assert any(BROKEN in tokenizer.decode([i]) for i in ids)


def test_nothing_certain_is_held_back(tokenizer):
    ids = tokenizer.encode("Zoë a🐻b")
    seen: list[int] = []
    text_so_far = ""

    def source():
        for i in ids:
            # Asked for the next id: all that came before has been said, unless it ends in half a character.
            so_far = tokenizer.decode(seen)
            assert so_far.startswith(text_so_far)
            assert so_far == text_so_far or so_far.endswith(BROKEN)
            seen.append(i)
            yield i

    for piece in stream_text(tokenizer, "", source()):
        text_so_far += piece
    assert text_so_far == "Zoë a🐻b"


@pytest.mark.parametrize("text", CORPUS)
def test_a_story_may_end_anywhere(tokenizer, text):
    """Wherever the story is cut, everything up to the last whole character is said."""
    ids = tokenizer.encode(text)
    for end in range(len(ids) + 1):
        whole = tokenizer.decode(ids[:end])
        assert "".join(pieces(tokenizer, "", ids[:end])) == whole.rstrip(BROKEN)


def test_some_token_of_the_merges_holds_a_whole_and_a_half_character(tokenizer):
    """What makes the test above hard: such a token at the end has something to say."""
    vocabulary = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    mixed = [text for text in vocabulary if text.rstrip(BROKEN) and text.endswith(BROKEN)]
    assert bool(mixed) == (tokenizer.vocab_size > 257)


@pytest.mark.parametrize("seed", range(20))
def test_random_ids_too(tokenizer, seed):
    """An untrained model says bytes that are no text; they decode to replacement characters in the middle."""
    ids = random.Random(seed).choices(range(tokenizer.vocab_size), k=60)
    whole = tokenizer.decode([*prompt_ids(tokenizer, "Once "), *ids]).removeprefix("Once ")
    assert "".join(pieces(tokenizer, "Once ", ids)) == whole.rstrip(BROKEN)


def test_the_prompt_is_not_said_again(tokenizer):
    assert "".join(pieces(tokenizer, "Once upon", tokenizer.encode(" a time"))) == " a time"
    assert pieces(tokenizer, "Once upon", []) == []
    # A prompt may itself have a replacement character, from a badly converted file.
    assert "".join(pieces(tokenizer, f"Once{BROKEN}", tokenizer.encode(" a time"))) == " a time"


def test_a_character_tokenizer_streams_too():
    tokenizer = train_tokenizer(TokenizerConfig(kind="char", vocab_size=100), CORPUS)
    assert pieces(tokenizer, "Bär", tokenizer.encode("été 🐻")) == list("été 🐻")


def test_a_prompt_is_the_beginning_of_a_document(tokenizer):
    ids = prompt_ids(tokenizer, "Once")
    assert ids[0] == tokenizer.end_of_text
    assert ids[1:] == tokenizer.encode("Once")
