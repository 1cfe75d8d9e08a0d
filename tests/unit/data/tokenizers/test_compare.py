"""What is reported about a vocabulary: its tokens' text, which ones are used, and which no text can produce."""

import collections
import json
import math

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from storyteller_ds.data.tokenizers.choose import open_tokenizer
from storyteller_ds.data.tokenizers.compare import measure
from storyteller_ds.data.tokenizers.pieces import BYTE_OF_LETTER, Piece, cut, kind_of, pieces, unreachable
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from tests.unit.data.test_text_bytes import bert, llama, unigram
from tests.unit.data.tokenizers.test_kinds import KINDS, STORIES, trained

TEXTS = ["the dog saw the cat", "naïve 🐻, the dog"]


def test_the_letters_of_bytes_are_the_librarys():
    assert BYTE_OF_LETTER.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_LETTER.values()) == list(range(256))
    for byte in range(128):
        ((letter, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(byte))
        assert BYTE_OF_LETTER[letter] == byte


@pytest.mark.parametrize("name", KINDS)
def test_the_pieces_of_a_text_are_the_text(name, shared_folder):
    tokenizer = KINDS[name](shared_folder)
    for text in [*STORIES, *TEXTS]:
        whole = b"".join(piece.content for piece in cut(tokenizer, text)).decode()
        assert whole.removeprefix(" ") == text.removeprefix(" ")  # some put a space before a text
    assert not pieces(tokenizer).keys() & set(tokenizer.special_tokens.values())


@pytest.mark.parametrize("make", [llama, unigram])
def test_so_they_are_of_tokenizers_from_elsewhere(make):
    tokenizer = Tokenizer(make())
    whole = b"".join(piece.content for piece in cut(tokenizer, STORIES[0])).decode()
    assert whole.strip() == STORIES[0]


def test_kinds_have_names(shared_folder):
    names = {name: kind_of(make(shared_folder)) for name, make in KINDS.items()}
    assert {names["bpe"], names["gpt2"]} == {"byte-level BPE"}
    assert {names["sentencepiece"], names["sentencepiece with special tokens"], names["llama2c"]} == {
        "BPE with byte fallback"
    }
    assert names["char"] == "characters"
    assert kind_of(Tokenizer(bert())) == "WordPiece, from elsewhere"


def test_bytes_and_what_cannot_be_seen_are_readable():
    assert str(Piece(0, "a é\n🐻".encode())) == "a é\\n🐻"
    assert str(Piece(0, b"\xf0\x9f")) == "<F0><9F>"
    assert str(Piece(0, b"x\x1b[2J\x00")) == "x\\x1b[2J\\x00"


def test_the_numbers_are_those_of_the_ids():
    tokenizer = trained("bpe")(None)
    found = measure("mine", tokenizer, TEXTS, rare_below=2)
    ids = [i for text in TEXTS for i in tokenizer.encode(text)]
    counts = collections.Counter(ids)
    assert (found.tokens, found.characters) == (len(ids), sum(map(len, TEXTS)))
    assert found.bytes == sum(len(text.encode()) for text in TEXTS) > found.characters
    assert found.characters_per_token == found.characters / len(ids)
    assert found.bytes_per_token == found.bytes / len(ids)
    bits = -sum(count * math.log2(count / len(ids)) for count in counts.values())
    assert found.frequency_bpb == pytest.approx(bits / found.bytes)
    assert {piece.id for piece in found.rare} == {i for i, count in counts.items() if count == 1}
    assert {piece.id for piece in found.unused} == set(range(1, tokenizer.vocab_size)) - counts.keys()
    assert found.seconds > 0
    assert (found.unknown, found.unreachable) == (0, [])


def test_unknown_characters_are_counted():
    assert measure("char", trained("char")(None), ["the Ж cat Ж"], 2).unknown == 2


def test_a_token_that_no_text_becomes_is_found():
    # Plant a merge that the tokenizer's own pre-tokenizer cuts apart.
    state = json.loads(trained("bpe")(None).to_json())
    letters = {name for name in state["model"]["vocab"] if len(name) == 1}
    assert {"g", "Ġ"} <= letters
    state["model"]["vocab"]["gĠ"] = 330
    state["model"]["merges"].append(["g", "Ġ"])
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)))
    assert unreachable(tokenizer) == [Piece(330, b"g ")]


def test_gpt2_has_tokens_that_stories_never_use(shared_folder):
    text = (shared_folder / "data" / "tinystories_val.txt").read_text(encoding="utf-8")
    found = measure("gpt2", open_tokenizer(shared_folder / "data" / "gpt2"), [text[:100_000]], 10)
    assert " SolidGoldMagikarp" in {piece.content.decode(errors="replace") for piece in found.unused}
    assert len(found.unused) > 40_000


def test_it_is_drawn(tmp_path):
    from storyteller_ds.data.tokenizers.plot import draw

    found = [measure(name, trained(name)(None), TEXTS, 2) for name in ("bpe", "char", "sentencepiece")]
    bars, curves = draw(found).axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([each.bytes_per_token for each in found])
    assert [text.get_text() for text in bars.get_yticklabels()] == ["bpe", "char", "sentencepiece"]
    assert [line.get_ydata().sum() for line in curves.lines[::2]] == [each.tokens for each in found]
