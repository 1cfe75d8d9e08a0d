"""What every kind of tokenizer guarantees."""

import random
from collections.abc import Callable

import pytest
import tokenizers

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.tokenizers.choose import open_tokenizer, train_tokenizer
from storyteller_ds.data.tokenizers.llama2c import read_tokenizer, write_tokenizer
from storyteller_ds.data.tokenizers.scored import scored_tokens
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, UNKNOWN, Tokenizer
from storyteller_ds.errors import DataError
from tests.unit.data.tokenizers.test_scored import encode_as_run_c, read_file
from tests.unit.data.tokenizers.test_trained import DOCUMENTS, random_text

SPECIAL = (UNKNOWN, "<|im_start|>", "<|im_end|>")
STORIES = [
    *DOCUMENTS,
    "Tom and the cat had 12 cakes, and the cat ran to the dog.",
    "<0x41> is a word, and so is <unk>.",
]
ODD = [
    "",
    " ",
    "  a  b ",
    "\r\n\t",
    "\0",
    "\ufeffx",
    "e\u0301",
    "\u2581Once",
    "<unk>",
    "</s>",
    "<0x41>",
    " " * 50,
    "1234",
]


def trained(kind: str, special: tuple[str, ...] = ()) -> Callable[[object], Tokenizer]:
    config = TokenizerConfig.model_validate({"kind": kind, "vocab_size": 330, "special_tokens": special})
    return lambda shared: train_tokenizer(config, STORIES)


EXACT: dict[str, Callable[..., Tokenizer]] = {
    "bpe": trained("bpe"),
    "bpe with special tokens": trained("bpe", SPECIAL),
    "sentencepiece": trained("sentencepiece"),
    "sentencepiece with special tokens": trained("sentencepiece", SPECIAL),
    "gpt2": lambda shared: open_tokenizer(shared / "data" / "gpt2"),
    "llama2c": lambda shared: open_tokenizer(shared / "models" / "tok512.bin"),
}
KINDS = {**EXACT, "char": trained("char"), "char with special tokens": trained("char", SPECIAL)}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, shared_folder) -> tuple[str, Tokenizer]:
    return request.param, KINDS[request.param](shared_folder)


def test_any_text_comes_back(kind):
    name, tokenizer = kind
    rng = random.Random(0)
    texts = [*STORIES, *ODD, *(random_text(rng) for _ in range(300))]
    encoded = tokenizer.encode_batch(texts)
    back = [tokenizer.decode(ids) for ids in encoded]
    if name in EXACT:
        assert back == texts
    else:  # control: a character tokenizer loses characters it has never seen
        assert back[: len(STORIES)] == STORIES
        assert back != texts
    of_token = tokenizer.token_bytes(tokenizer.vocab_size)
    for text, (ids, sizes) in zip(texts, tokenizer.encode_with_bytes(texts), strict=True):
        assert sizes.sum() == len(text.encode())
        assert not tokenizer.spells_bytes or of_token[ids].sum() == sizes.sum()
    assert [ids for ids, _ in tokenizer.encode_with_bytes(texts)] == encoded


def test_a_special_token_within_a_story_is_text(kind):
    name, tokenizer = kind
    wanted = {END_OF_TEXT, *(SPECIAL if "special" in name else ())} | ({UNKNOWN} if "char" in name else set())
    assert tokenizer.special_tokens.keys() == wanted
    for token, i in tokenizer.special_tokens.items():
        for text in (token, f"a{token}b", f"the dog {token} and the cat", f"{token}{token}"):
            ids = tokenizer.encode(text)
            assert i not in ids or i == tokenizer.unknown
            assert tokenizer.encode_batch([text]) == [ids]
            if name in EXACT:
                assert tokenizer.decode(ids) == text
        assert tokenizer.decode([i]) == ""
        assert not tokenizer.is_forged(token)


def test_negative_control_by_itself_the_library_makes_commands_of_them():
    tokenizer = trained("bpe")(None)
    bare = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert tokenizer.end_of_text in bare.encode(f"a{END_OF_TEXT}b").ids


def test_transformers_reads_the_file_and_makes_the_same_ids(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    _, tokenizer = kind
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    texts = [*STORIES, *ODD]
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in texts] == tokenizer.encode_batch(texts)
    forged = f"a{END_OF_TEXT}b"
    assert theirs(forged, split_special_tokens=True)["input_ids"] == tokenizer.encode(forged)
    assert open_tokenizer(path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("name", "special", "bad"), [("bpe", "a", "'a'"), ("char", "a", "'a'"), ("sentencepiece", " the", "' the'")]
)
def test_a_special_token_that_is_an_ordinary_word_is_refused(name, special, bad):
    with pytest.raises(DataError, match=rf"special_tokens: .*{bad}.* would be made of ordinary text"):
        train_tokenizer(
            TokenizerConfig.model_validate({"kind": name, "vocab_size": 400, "special_tokens": (special,)}),
            STORIES * 3,
        )


@pytest.mark.parametrize("tokens", [("",), ("<a>", "<a>")])
def test_special_tokens_have_names(tokens):
    with pytest.raises(ValueError, match="each special token needs a name of its own"):
        TokenizerConfig(special_tokens=tokens)


def test_special_tokens_come_first_and_cost_the_vocabulary():
    tokenizer = trained("bpe", SPECIAL)(None)
    assert tokenizer.special_tokens == {END_OF_TEXT: 0, UNKNOWN: 1, "<|im_start|>": 2, "<|im_end|>": 3}
    assert tokenizer.vocab_size == 330
    # Unlike in a character tokenizer, nothing is unknown.
    assert tokenizer.unknown is None
    with pytest.raises(DataError, match=r"no room for the 256 bytes and <.endoftext.>, .*use 260 or more"):
        train_tokenizer(TokenizerConfig(vocab_size=259, special_tokens=SPECIAL), STORIES)


def test_sentencepiece_is_what_llama2c_reads(tmp_path):
    # llama2.c's own encoder, given the exported file, makes the same ids for stories and odd texts.
    tokenizer = trained("sentencepiece")(None)
    tokens = scored_tokens(tokenizer)
    assert tokens is not None
    write_tokenizer(tokens, tmp_path / "tokenizer.bin")
    assert read_tokenizer(tmp_path / "tokenizer.bin", "fix").fingerprint == tokenizer.fingerprint
    theirs = read_file(tmp_path / "tokenizer.bin")
    for text in [*STORIES, *ODD]:
        assert tokenizer.encode(text) == encode_as_run_c(text, theirs), text


def test_sentencepiece_cuts_within_words_only():
    tokenizer = trained("sentencepiece")(None)
    texts = [tokenizer.name(i) or "" for i in range(259, tokenizer.vocab_size)]
    assert {" the", " cat"} <= set(texts)
    assert not [text for text in texts if " " in text[1:] or (text.strip().isdigit() and len(text.strip()) > 1)]
    with pytest.raises(DataError, match=r"use 260 or more, or tokenizer\.kind=char"):
        train_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=259), STORIES)
    least = train_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=260), STORIES)
    assert least.decode(least.encode("Any text.")) == "Any text."


@pytest.mark.parametrize("name", ["bpe", "char", "sentencepiece"])
def test_the_same_documents_give_the_same_tokenizer(name):
    assert len({trained(name)(None).to_json() for _ in range(5)}) == 1


def test_the_preset_of_105_characters(shared_folder):
    from storyteller_ds.config.load import load_config

    config = load_config("tok105").run.tokenizer
    text = (shared_folder / "data" / "tinystories_train.txt").read_text(encoding="utf-8")
    more = "".join(map(chr, range(0x410, 0x450)))  # the file has fewer characters than the full dataset
    tokenizer = train_tokenizer(config, [text, more])
    assert tokenizer.vocab_size == 105
    assert tokenizer.special_tokens == {END_OF_TEXT: 0, UNKNOWN: 1}
    assert tokenizer.decode(tokenizer.encode(text[:5000])) == text[:5000]


def test_sentencepiece_spells_rare_characters_in_bytes(shared_folder):
    text = (shared_folder / "data" / "tinystories_train.txt").read_text(encoding="utf-8")[:300_000]
    tokenizer = train_tokenizer(TokenizerConfig(kind="sentencepiece", vocab_size=512), [text, "Ж" * 3])
    assert tokenizer.vocab_size == 512
    names = {tokenizer.name(i) for i in range(512)}
    letters = {name for name in names if name is not None and len(name) == 1}
    assert len(letters) == (512 - 259) // 4
    assert {*"etaoin"} <= letters
    assert [tokenizer.name(i) for i in tokenizer.encode("Ж")[1:]] == ["<0xD0>", "<0x96>"]
