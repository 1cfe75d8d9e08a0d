"""Damage to any byte of a token shard or of a prepared corpus's index is reported or has no effect."""

import hashlib
import json
import os
import random
import struct
from pathlib import Path

import pytest

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.data.shards import HEADER_BYTES, MAGIC, VERSION, open_shard, write_shards
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import seal_of
from tests.support.mutations import mutated_bytes, mutated_value, put

SEED = 20250102
IDS = [0, 1, 2, 49, 3, 7, 49, 0]
CHECKED = struct.Struct("<8sIIQQ")


def refused(path: Path, vocab_size: int = 50) -> bool:
    """Whether opening it is refused with an error that names it; otherwise check that its ids are in the vocabulary."""
    try:
        ids = open_shard(path, vocab_size)
    except DataError as error:
        return str(path) in str(error)
    assert 0 <= int(ids.min()) <= int(ids.max()) < vocab_size
    return False


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    (name,) = write_shards(tmp_path, "x", [IDS], 50, 100)
    assert not refused(tmp_path / name)
    return tmp_path / name


def test_every_flipped_bit_is_noticed(shard):
    whole = shard.read_bytes()
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        put(shard, content)
        assert refused(shard), f"bit {bit % 8} of byte {bit // 8}"


def test_every_truncation_is_noticed(shard):
    whole = shard.read_bytes()
    for length in range(len(whole)):
        put(shard, whole[:length])
        assert refused(shard), length


def hostile_header(rng: random.Random) -> bytes:
    """A shard with random values but a correct checksum, as made on purpose."""
    numbers = (0, 1, 2, 3, 4, 8, 50, 51, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
    ids = bytes(rng.randrange(256) for _ in range(rng.choice((0, 1, 2, 3, 4, 8, 16))))
    magic = MAGIC if rng.random() < 0.9 else rng.randbytes(8)
    version = VERSION if rng.random() < 0.8 else rng.choice(numbers[:11])
    count = rng.choice((*numbers, len(ids) // 2, len(ids) // 2, len(ids) // 4))
    header = CHECKED.pack(magic, version, rng.choice((2, 2, 4, rng.choice(numbers[:11]))), count, rng.choice(numbers))
    return header + hashlib.sha256(header + ids).digest() + ids


def fuzz_headers(path: Path, count: int) -> None:
    rng = random.Random(SEED)
    outcomes = []
    for _ in range(count):
        put(path, hostile_header(rng))
        outcomes.append(refused(path, vocab_size=rng.choice((50, 2**16, 2**32))))
    # Control: some are accepted.
    assert 0.001 < outcomes.count(False) / count < 0.5


def test_1000_hostile_headers_map_nothing_beyond_the_file_or_the_vocabulary(tmp_path):
    fuzz_headers(tmp_path / "x.tokens", 1000)


@pytest.mark.faults
def test_5000_hostile_headers_map_nothing_beyond_the_file_or_the_vocabulary(tmp_path):
    fuzz_headers(tmp_path / "x.tokens", 5000)


def test_a_hostile_header_is_laid_out_as_ours(shard):
    # Control: a header made here from the true values equals the one that was written.
    ids = shard.read_bytes()[HEADER_BYTES:]
    header = CHECKED.pack(MAGIC, VERSION, 2, len(IDS), 50)
    assert shard.read_bytes() == header + hashlib.sha256(header + ids).digest() + ids


# --- the index ---


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[RunConfig, str, Path]:
    text = tmp_path / "stories.txt"
    text.write_text("\n\n".join(f"Story number {i}. There was a dog called Rex{i}." for i in range(40)))
    data = {"source": str(text), "cache_dir": str(tmp_path / "cache"), "validation_fraction": 0.2}
    run = RunConfig.model_validate({"data": data, "tokenizer": {"kind": "char", "vocab_size": 64}})
    key = prepare_corpus(run, lambda line: None)
    return run, key, tmp_path / "cache" / key


def meaning(corpus: Corpus) -> tuple[object, ...]:
    streams = (corpus.train, corpus.validation)
    return (
        corpus.fingerprint,
        corpus.tokenizer.to_json(),
        [stream.read(0, len(stream)).tolist() for stream in streams],
    )


def opened(run: RunConfig, key: str) -> tuple[object, ...] | None:
    try:
        return meaning(open_corpus(run, key))
    except DataError:
        return None


@pytest.mark.parametrize("name", ["corpus.json", "tokenizer.json"])
def test_a_damaged_byte_of_the_index_never_changes_what_it_means(prepared, name):
    run, key, folder = prepared
    whole, sound = (folder / name).read_bytes(), opened(run, key)
    assert sound is not None
    for byte in range(len(whole)):
        put(folder / name, whole[:byte] + bytes([whole[byte] ^ 1 << byte % 8]) + whole[byte + 1 :])
        assert opened(run, key) in (None, sound), byte


def fuzz_index(prepared: tuple[RunConfig, str, Path], count: int) -> None:
    """Fuzz the index with changed values under a correct seal, and with changed bytes."""
    run, key, folder = prepared
    rng = random.Random(SEED)
    path = folder / "corpus.json"
    text = path.read_bytes()
    outcomes = []
    for _ in range(count):
        values = mutated_value(rng, json.loads(text))
        if isinstance(values, dict):
            values["seal"] = seal_of(values)
        put(path, json.dumps(values).encode() if rng.random() < 0.8 else mutated_bytes(rng, text))
        outcomes.append(opened(run, key) is not None)
    assert 0.001 < outcomes.count(True) / count < 0.9


def test_500_hostile_indexes_open_or_are_refused(prepared):
    fuzz_index(prepared, 500)


@pytest.mark.faults
def test_2000_hostile_indexes_open_or_are_refused(prepared):
    fuzz_index(prepared, 2000)


@pytest.mark.parametrize("name", ["../outside.tokens", "/etc/passwd", "a\0b", "link.tokens", "fifo.tokens", 1, None])
@pytest.mark.timeout(60)
def test_a_shard_outside_of_the_folder_is_not_opened(prepared, name):
    run, key, folder = prepared
    index = json.loads((folder / "corpus.json").read_text())
    shard = folder / index["train"]["shards"][0]
    (folder.parent / "outside.tokens").write_bytes(shard.read_bytes())  # good, but elsewhere
    (folder / "link.tokens").symlink_to("../outside.tokens")
    os.mkfifo(folder / "fifo.tokens")
    index["train"]["shards"] = [name]
    index["seal"] = seal_of(index)
    (folder / "corpus.json").write_text(json.dumps(index))
    assert opened(run, key) is None
