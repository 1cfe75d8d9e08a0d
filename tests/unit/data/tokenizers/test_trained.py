"""Tokenizers: nothing is lost, the separator cannot be forged, the same corpus gives the same file."""

import random
import unicodedata

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, UNKNOWN, Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.errors import DataError

DOCUMENTS = ["Once upon a time there was a dog.", "One day, the dog saw a cat.\n\nThe cat ran.", "café, naïve, 🐻"]


def bpe(vocab_size: int = 300) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=vocab_size), DOCUMENTS)


def char(vocab_size: int = 100) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="char", vocab_size=vocab_size), DOCUMENTS)


def random_text(rng: random.Random) -> str:
    """Random characters that UTF-8 can encode, so no surrogates."""
    ranges = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 40)))


def test_bpe_loses_nothing_of_any_text():
    tokenizer, rng = bpe(), random.Random(0)
    sizes = tokenizer.token_bytes(300)
    texts = [random_text(rng) for _ in range(500)] + ["", " ", "  a  b ", "\r\n\t", "\0", "\ufeffx", "e\u0301", "Å"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
        assert sizes[ids].sum() == len(text.encode())
        assert tokenizer.end_of_text not in ids
    assert any(unicodedata.normalize("NFC", t) != t for t in texts)  # control: nothing was normalized away


@pytest.mark.parametrize("make", [bpe, char])
def test_the_separator_in_a_text_stays_text(make):
    tokenizer = make()
    text = f"a{END_OF_TEXT}b"
    assert tokenizer.end_of_text not in tokenizer.encode(text)
    assert tokenizer.end_of_text not in tokenizer.encode_batch([text])[0]
    again = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.to_json()))
    assert tokenizer.encode(text) == again.encode(text)
    # The token itself has no text and no bytes.
    assert tokenizer.decode([tokenizer.end_of_text]) == ""
    assert tokenizer.token_bytes(300)[tokenizer.end_of_text] == 0


def test_bpe_keeps_a_separator_that_is_text():
    assert bpe().decode(bpe().encode(f"a{END_OF_TEXT}b")) == f"a{END_OF_TEXT}b"


def test_char_has_one_token_a_character_and_knows_what_it_does_not_know():
    tokenizer = char()
    text = "the dog\nsaw 🐻é"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    ((_, sizes),) = tokenizer.encode_with_bytes([text])
    assert sizes.tolist() == [*(len(character.encode()) for character in text), 0]
    ((unknown, sizes),) = tokenizer.encode_with_bytes(["日a本"])
    assert unknown[0] == unknown[2] != unknown[1]
    assert unknown[0] == tokenizers.Tokenizer.from_str(tokenizer.to_json()).token_to_id(UNKNOWN) == tokenizer.unknown
    assert sizes.tolist() == [3, 1, 3, 0]  # bytes of the original text, not of the unknown token
    assert tokenizer.vocab_size == len(set("".join(DOCUMENTS))) + 2


def test_a_small_char_vocabulary_keeps_the_most_frequent():
    tokenizer = train_tokenizer(TokenizerConfig(kind="char", vocab_size=4), ["aaabbc"])
    a, b, c = (tokenizer.encode(x)[0] for x in "abc")
    assert tokenizer.vocab_size == 4
    assert tokenizer.decode([a, b]) == "ab"
    assert tokenizer.decode([c]) == ""


def test_the_vocabulary_is_no_larger_than_asked_and_large_enough():
    assert bpe(270).vocab_size == 270
    assert bpe(257).vocab_size == 257
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=256.*use 257 or more, or tokenizer\.kind=char"):
        bpe(256)
    sizes = bpe(270).token_bytes(400)
    assert sizes.shape == (400,)
    assert (sizes[270:] == 0).all()


@pytest.mark.parametrize("make", [bpe, char])
def test_the_same_corpus_gives_the_same_file(make, tmp_path):
    first, second = make(), make()
    assert first.to_json() == second.to_json()
    assert first.fingerprint == second.fingerprint
    path = tmp_path / "tokenizer.json"
    path.write_text(first.to_json(), encoding="utf-8")
    assert load_tokenizer(path).fingerprint == first.fingerprint
    other = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), [*DOCUMENTS, "zebra zebra zebra"])
    assert other.fingerprint != first.fingerprint


def test_files_that_are_no_tokenizer_are_refused_in_one_line(tmp_path):
    path = tmp_path / "tokenizer.json"
    bare = tokenizers.Tokenizer(models.BPE()).to_str()
    for content in (b"", b"{}", b"not json", b"\xff", bare.encode()):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_tokenizer(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"tokenizer\.path"):
        load_tokenizer(tmp_path / "none.json")


def foreign(*, added: str, special: bool = False) -> Tokenizer:
    """A byte-level tokenizer from elsewhere with one added token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END_OF_TEXT])
    inner.add_tokens([AddedToken(added, special=special)])
    return Tokenizer(inner)


def test_an_added_token_of_a_foreign_tokenizer_has_the_bytes_of_its_text():
    # Its name is its text, not letters that stand for bytes as in the rest of the vocabulary.
    tokenizer = foreign(added="é🐻")
    ids = tokenizer.encode("a é🐻 b")
    assert tokenizer.decode(ids) == "a é🐻 b"
    assert tokenizer.token_bytes(300)[ids].sum() == len("a é🐻 b".encode())
