"""Streamed text: no piece has an incomplete character, and nothing is lost."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from storyteller_ds.generation.decode import prompt_ids, text_of_each

CORPUS = [
    "Es war einmal ein Bär, der übte Flöte. 🐻🎶",
    "L'été, l'élève rêvait à la forêt — où était-elle ? 🌲",
    "Zoë naïvely ate jalapeños, piñatas and crème brûlée. 😀😀",
    "The end. ☕️ Ω 日本語 👩‍👩‍👧",
]  # fmt: skip
BROKEN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module", params=[257, 320], ids=["bytes", "merges"])
def tokenizer(request) -> Tokenizer:
    """Without merges, every byte is a token; with merges, tokens hold parts of characters."""
    return train_tokenizer(TokenizerConfig(vocab_size=request.param), CORPUS)


def pieces(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> list[str]:
    return list(filter(None, text_of_each(tokenizer, prompt, iter(ids))))


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
            # The next id is requested: all text before it has been yielded, unless it ends in an incomplete character.
            so_far = tokenizer.decode(seen)
            assert so_far.startswith(text_so_far)
            assert so_far == text_so_far or so_far.endswith(BROKEN)
            seen.append(i)
            yield i

    for piece in filter(None, text_of_each(tokenizer, "", source())):
        text_so_far += piece
    assert text_so_far == "Zoë a🐻b"


@pytest.mark.parametrize("text", CORPUS)
def test_a_story_may_end_anywhere(tokenizer, text):
    """Wherever a story is cut, everything up to the last complete character is yielded."""
    ids = tokenizer.encode(text)
    for end in range(len(ids) + 1):
        whole = tokenizer.decode(ids[:end])
        assert "".join(pieces(tokenizer, "", ids[:end])) == whole.rstrip(BROKEN)


def test_some_token_of_the_merges_holds_a_whole_and_a_half_character(tokenizer):
    """Such a token makes the test above hard: at the end of a story, it still adds text."""
    vocabulary = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    mixed = [text for text in vocabulary if text.rstrip(BROKEN) and text.endswith(BROKEN)]
    assert bool(mixed) == (tokenizer.vocab_size > 257)


@pytest.mark.parametrize("seed", range(20))
def test_random_ids_too(tokenizer, seed):
    """An untrained model generates bytes that are not text; they decode to replacement characters in the middle."""
    ids = random.Random(seed).choices(range(tokenizer.vocab_size), k=60)
    whole = tokenizer.decode([*prompt_ids(tokenizer, "Once "), *ids]).removeprefix("Once ")
    assert "".join(pieces(tokenizer, "Once ", ids)) == whole.rstrip(BROKEN)


def test_the_prompt_is_not_said_again(tokenizer):
    assert "".join(pieces(tokenizer, "Once upon", tokenizer.encode(" a time"))) == " a time"
    assert pieces(tokenizer, "Once upon", []) == []
    # A prompt may itself contain a replacement character, from a badly converted file.
    assert "".join(pieces(tokenizer, f"Once{BROKEN}", tokenizer.encode(" a time"))) == " a time"


def test_a_character_tokenizer_streams_too():
    tokenizer = train_tokenizer(TokenizerConfig(kind="char", vocab_size=100), CORPUS)
    assert pieces(tokenizer, "Bär", tokenizer.encode("été 🐻")) == list("été 🐻")


def test_a_prompt_is_the_beginning_of_a_document(tokenizer):
    ids = prompt_ids(tokenizer, "Once")
    assert ids[0] == tokenizer.end_of_text
    assert ids[1:] == tokenizer.encode("Once")


# Only what is not yet certain is decoded again


def decoded_whole(tokenizer: Tokenizer, prompt: str, ids: Sequence[int]) -> list[str]:
    """The plain definition: the whole context is decoded again for every id."""
    context = prompt_ids(tokenizer, prompt)
    said, found = len(tokenizer.decode(context)), []
    for i in ids:
        context.append(i)
        whole = tokenizer.decode(context).rstrip(BROKEN)
        found.append(whole[said:])
        said = max(said, len(whole))
    return found


def sentencepiece(decoder: Any) -> Tokenizer:
    """Words with a leading space, letters, and a token for each byte, as in Llama 2."""
    words = ["▁", "▁the", "▁a", "▁▁", "end", "é", "🐻", ".", "s", "▁fox", BROKEN]
    names = ["<unk>", END_OF_TEXT, *(f"<0x{i:02X}>" for i in range(256)), *words]
    inner = tokenizers.Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>")
    )
    inner.add_special_tokens([END_OF_TEXT, "<unk>"])
    inner.decoder = decoder
    return Tokenizer(inner)


def word_pieces() -> Tokenizer:
    names = ["[UNK]", END_OF_TEXT, "the", "##s", ".", "n", "##'", "do", "'", "fox", "a"]
    inner = tokenizers.Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.add_special_tokens([END_OF_TEXT])
    inner.decoder = decoders.WordPiece(cleanup=True)
    return Tokenizer(inner)


def no_decoder() -> Tokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, END_OF_TEXT: 1, "the": 2, "fox": 3}, unk_token="<unk>"))
    inner.add_special_tokens([END_OF_TEXT])
    return Tokenizer(inner)


def of_llama() -> Any:
    spaces = decoders.Replace("▁", " ")
    return decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: train_tokenizer(TokenizerConfig(vocab_size=257), CORPUS),
    "merges": lambda: train_tokenizer(TokenizerConfig(vocab_size=320), CORPUS),
    "char": lambda: train_tokenizer(TokenizerConfig(kind="char", vocab_size=40), CORPUS),
    "Llama 2": lambda: sentencepiece(of_llama()),
    "Metaspace": lambda: sentencepiece(decoders.Metaspace()),
    "byte fallback": lambda: sentencepiece(decoders.ByteFallback()),
    "no decoder": no_decoder,
    "word pieces": word_pieces,
    "two spaces stripped": lambda: sentencepiece(decoders.Sequence([decoders.Fuse(), decoders.Strip("s", 2, 0)])),
    "stripped twice": lambda: sentencepiece(decoders.Sequence([decoders.Fuse(), *[decoders.Strip("s", 1, 0)] * 2])),
}
DECODED_WHOLE = ("word pieces", "two spaces stripped", "stripped twice")
"""Kinds that must decode the whole text again, since a token's text depends on the tokens around it."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_are_those_of_the_whole_decoded_anew(kind):
    tokenizer = KINDS[kind]()
    chance, joined = random.Random(kind), ""
    for _ in range(150):
        # Ids without a token, too. The first part has no broken bytes; the second has few tokens, which often meet.
        everything = range(tokenizer.vocab_size + 2)
        usual = [i for i in everything if BROKEN not in tokenizer.decode([i])]
        parts = (usual, everything[-12:], everything)
        ids = [i for part in parts for i in chance.choices(part, k=chance.randint(0, 20))]
        for prompt in ("", "the fox", f"é{BROKEN}", " "):
            found = list(text_of_each(tokenizer, prompt, iter(ids)))
            assert found == decoded_whole(tokenizer, prompt, ids)
            joined += "".join(found)
    assert len(set(joined)) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_story_is_not_decoded_again_and_again(kind, monkeypatch):
    tokenizer = KINDS[kind]()
    # After one of SentencePiece's byte tokens no text is certain; these are words and letters.
    words = [i for i in range(tokenizer.vocab_size) if BROKEN not in tokenizer.decode([i])][-7:]
    ids = random.Random(kind).choices(words, k=400)
    prompt, sizes = "the fox", []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda window: (sizes.append(len(window)), decode(window))[1])
    list(text_of_each(tokenizer, prompt, iter(ids)))
    longest = max(sizes[3:])
    assert longest > 400 if kind in DECODED_WHOLE else longest < 40
