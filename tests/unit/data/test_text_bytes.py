"""Bits per byte are per byte of the text as it was read, whatever the tokenizer does to it."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data import corpus as module
from storyteller_ds.data.batching.batches import BatchSplit, ValidationBatches
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.data.text_bytes import aligned_bytes
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from tests.support.cut_stream import cut

LENGTH = 7
STORIES = [
    *(f"Once upon a time there was a Dog  called Rex{i}.\nIt ran - and ran, {i * i} times!" for i in range(40)),
    "Zwölf Bären 🐻🐻 sagten: „Hallo“!",
    "日本語の話 e\u0301 Å ﬁn",
    "\u200bodd\u2028white\u3000space\ttoo",
    "🐻",
    "'Tis Léa's café; naïve.",
]
ROWS = 700


def byte_level(decoder: decoders.Decoder, prefix: bool = False) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoder
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    inner.train_from_iterator(STORIES[:10], trainer)
    return inner


def with_byte_fallback(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokens = ["<unk>", END_OF_TEXT, *(f"<0x{byte:02X}>" for byte in range(256))]
    inner.train_from_iterator(STORIES[:10], trainers.BpeTrainer(vocab_size=400, special_tokens=tokens))
    return inner


def llama() -> tokenizers.Tokenizer:
    """Like Llama 2's: a normalizer turns spaces into ▁, and byte tokens cover what the vocabulary lacks."""
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_byte_fallback(inner)


def sentence_piece() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    return with_byte_fallback(inner)


def unigram() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>")
    inner.train_from_iterator(STORIES[:10], trainer)
    inner.add_special_tokens([END_OF_TEXT])
    return inner


def bert() -> tokenizers.Tokenizer:
    """WordPiece: drops case, accents and white space, and has many unknown words."""
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", END_OF_TEXT])
    inner.train_from_iterator(STORIES[:10], trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [CLS]", special_tokens=[("[CLS]", inner.token_to_id("[CLS]"))]
    )
    return inner


def qwen() -> tokenizers.Tokenizer:
    inner = byte_level(decoders.ByteLevel())
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return inner


def words() -> tokenizers.Tokenizer:
    """Words only: white space is dropped and most words are unknown."""
    inner = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=12, special_tokens=["[UNK]"])
    inner.train_from_iterator(STORIES[:10], trainer)
    inner.add_special_tokens([END_OF_TEXT])
    return inner


def stripping() -> tokenizers.Tokenizer:
    inner = byte_level(decoders.ByteLevel())
    inner.add_tokens([AddedToken("Rex", lstrip=True, rstrip=True)])
    return inner


def gpt2() -> tokenizers.Tokenizer:
    """GPT-2's rules and its layout of tokenizer.json, with another vocabulary."""
    inner = byte_level(decoders.ByteLevel())
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    return inner


SPELLING: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte level": lambda: byte_level(decoders.ByteLevel()),
    "gpt2": gpt2,
}
OTHERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "sequence of byte level": lambda: byte_level(decoders.Sequence([decoders.ByteLevel()])),
    "prefix space": lambda: byte_level(decoders.ByteLevel(), prefix=True),
    "no decoder": lambda: byte_level(None),
    "an added token that takes white space": stripping,
    "llama": llama,
    "sentence piece": sentence_piece,
    "unigram": unigram,
    "bert": bert,
    "qwen": qwen,
    "words": words,
}


def corpus_of(tmp_path: Path, tokenizer: dict[str, object], name: str = "cache") -> Corpus:
    source = tmp_path / "stories.txt"
    source.write_text(END_OF_TEXT.join(STORIES), encoding="utf-8", newline="")
    data = {"source": str(source), "validation": str(source), "cache_dir": str(tmp_path / name)}
    run = RunConfig.model_validate({"data": data, "tokenizer": {"vocab_size": ROWS, **tokenizer}})
    return open_corpus(run, prepare_corpus(run, lambda line: None))


def with_tokenizer(tmp_path: Path, inner: tokenizers.Tokenizer) -> Corpus:
    path = tmp_path / "given.json"
    path.write_text(inner.to_str(), encoding="utf-8")
    return corpus_of(tmp_path, {"path": str(path)})


def check(corpus: Corpus) -> None:
    """Compare byte counts with the text: per document, for all documents, and for a limited validation."""
    stream, end = corpus.validation, corpus.tokenizer.end_of_text
    ids = stream.read(0, len(stream))
    cuts = np.flatnonzero(ids == end)
    assert len(cuts) == len(STORIES) + 1
    counted = [corpus.validation_bytes.at(np.arange(a + 1, b + 1)) for a, b in itertools.pairwise(cuts)]
    assert counted == [len(story.encode()) for story in STORIES]
    assert corpus.validation_size.bytes == corpus.train_size.bytes == sum(counted)
    batches = ValidationBatches(cut(stream, LENGTH, keeps_rest=True), corpus.validation_bytes, BatchSplit(0, 1, 2, 1))
    assert batches.text_bytes(None) == sum(counted)
    so_far = [batches.text_bytes(limit) for limit in range(1, len(ids) // (2 * LENGTH) + 2)]
    assert so_far == sorted(so_far)
    assert so_far[-1] == sum(counted)
    for limit, count in enumerate(so_far, start=1):
        # The documents that lie whole within the limit, and part of the next one.
        stop = min(limit * 2 * LENGTH + 1, len(ids))
        whole = sum(counted[: int(np.count_nonzero(ids[:stop] == end)) - 1])
        assert whole <= count <= whole + max(counted)


@pytest.mark.parametrize("name", [*SPELLING, *OTHERS])
def test_the_bytes_are_those_of_the_text_for_any_tokenizer(name, tmp_path):
    corpus = with_tokenizer(tmp_path, {**SPELLING, **OTHERS}[name]())
    check(corpus)
    assert (corpus.validation_bytes.token_bytes is not None) == (name in SPELLING)


@pytest.mark.parametrize(("kind", "rows"), [("bpe", 400), ("char", 400), ("char", 20), ("sentencepiece", 400)])
def test_so_they_are_for_those_that_are_trained_here(kind, rows, tmp_path):
    corpus = corpus_of(tmp_path, {"kind": kind, "vocab_size": rows})
    check(corpus)
    assert (corpus.validation_size.unknown_tokens > 0) == (rows == 20)


@pytest.mark.parametrize("decoder", [decoders.ByteLevel(), decoders.Sequence([decoders.ByteLevel()])], ids=str)
def test_so_they_are_for_gpt2s_own_on_real_stories(shared_folder, decoder, tmp_path):
    files = (shared_folder / "data" / "gpt2" / f"gpt2_{name}" for name in ("vocab.json", "merges.txt"))
    inner = tokenizers.Tokenizer(models.BPE.from_file(*map(str, files)))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoder
    inner.add_special_tokens([END_OF_TEXT])
    (tmp_path / "gpt2.json").write_text(inner.to_str(), encoding="utf-8")
    text = shared_folder / "data" / "tinystories_val.txt"
    data = {"source": str(text), "validation": str(text), "cache_dir": str(tmp_path / "cache")}
    settings = {"data": data, "tokenizer": {"vocab_size": 50257, "path": str(tmp_path / "gpt2.json")}}
    run = RunConfig.model_validate(settings)
    corpus = open_corpus(run, prepare_corpus(run, lambda line: None))
    ids, end = corpus.validation.read(0, len(corpus.validation)), corpus.tokenizer.end_of_text
    documents = [document.encode() for document in TextFileSource(text).documents()]
    cuts = np.flatnonzero(ids == end)
    counted = [corpus.validation_bytes.at(np.arange(a + 1, b + 1)) for a, b in itertools.pairwise(cuts)]
    assert counted == [len(document) for document in documents]


def test_where_tokens_spell_bytes_the_two_ways_of_counting_agree():
    tokenizer = Tokenizer(byte_level(decoders.ByteLevel()))
    table = tokenizer.token_bytes(ROWS)
    rng = random.Random(0)
    alphabet = [" ", "a", "e\u0301", "é", "日", "🐻", "\n", "\u2028", "  ", "'s", "Dog"]
    for text in ("".join(rng.choice(alphabet) for _ in range(rng.randrange(30))) for _ in range(300)):
        ((ids, recorded),) = tokenizer.encode_with_bytes([text])
        assert ids == tokenizer.encode_batch([text])[0]
        assert recorded.sum() == table[ids].sum() == len(text.encode())
        # The two differ only where a character is cut into several tokens.
        assert np.abs(np.cumsum(recorded[:-1]) - np.cumsum(table[ids])).max(initial=0) < 4


def test_the_exact_number_of_our_tokenizer_stays(tmp_path):
    """Also for a window that ends inside a character: the val_bpb of existing runs depends on it."""
    corpus = corpus_of(tmp_path, {"kind": "bpe", "vocab_size": 270})
    ids = corpus.validation.read(0, len(corpus.validation)).tolist()
    names = [corpus.tokenizer._inner.id_to_token(i) for i in range(270)]
    for stop in range(2, len(ids)):
        expected = sum(len(names[i]) for i in ids[1:stop] if i != corpus.tokenizer.end_of_text)
        assert corpus.validation_bytes.at(np.arange(1, stop)) == expected


def test_unknown_tokens_are_counted(tmp_path):
    corpus = with_tokenizer(tmp_path, words())
    known = set(tokenizers.Tokenizer.from_str(corpus.tokenizer.to_json()).get_vocab())
    assert corpus.validation_size.unknown_tokens == sum(word not in known for s in STORIES for word in s.split())


def test_a_document_of_which_no_token_is_left_has_its_bytes_all_the_same():
    assert aligned_bytes("  é ", []).tolist() == [5]


def test_tokens_out_of_place_never_count_twice():
    # Before the text, after it, going backward; some tokenizers report (0, 0) for a token that they insert.
    assert aligned_bytes("aé🐻b", [(0, 0), (0, 1), (0, 0), (1, 3), (2, 3), (3, 99)]).tolist() == [0, 1, 0, 6, 0, 1, 0]


def test_a_cache_from_before_they_were_counted_is_prepared_again(tmp_path, monkeypatch):
    path = tmp_path / "given.json"
    path.write_text(llama().to_str(), encoding="utf-8")
    source = tmp_path / "stories.txt"
    source.write_text(END_OF_TEXT.join(STORIES), encoding="utf-8")
    data = {"source": str(source), "validation": str(source), "cache_dir": str(tmp_path / "cache")}
    run = RunConfig.model_validate({"data": data, "tokenizer": {"vocab_size": ROWS, "path": str(path)}})
    with monkeypatch.context() as older:
        older.setattr(Tokenizer, "spells_bytes", True)
        key = prepare_corpus(run, lambda line: None)
        fingerprint = open_corpus(run, key).fingerprint
    said: list[str] = []
    assert prepare_corpus(run, said.append) == key
    assert "again: " in said[0]
    corpus = open_corpus(run, key)
    assert corpus.fingerprint == fingerprint
    check(corpus)
    monkeypatch.setattr(module, "make_corpus", lambda *a: pytest.fail("made again"))
    prepare_corpus(run, said.append)
