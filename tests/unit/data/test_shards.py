"""Token shards read back what was written, and damage is reported."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from storyteller_ds.data.shards import HEADER_BYTES, TokenStream, open_shard, write_shards
from storyteller_ds.errors import DataError


def documents(rng: random.Random, vocab_size: int, count: int) -> list[list[int]]:
    return [[rng.randrange(vocab_size) for _ in range(rng.randint(1, 30))] for _ in range(count)]


def opened(folder: Path, names: list[str], vocab_size: int) -> TokenStream:
    return TokenStream([open_shard(folder / name, vocab_size) for name in names])


@pytest.mark.parametrize(("vocab_size", "bytes_per_id"), [(100, 2), (65536, 2), (65537, 4), (200_000, 4)])
@pytest.mark.parametrize("max_tokens", [1, 40, 10**9])
def test_what_was_written_is_read(tmp_path, vocab_size, bytes_per_id, max_tokens):
    docs = [*documents(random.Random(1), vocab_size, 20), [0, vocab_size - 1]]
    flat = [i for doc in docs for i in doc]
    names = write_shards(tmp_path, "train", docs, vocab_size, max_tokens)
    assert names == [f"train-{i:05d}.tokens" for i in range(len(names))]
    assert {1: len(docs), 10**9: 1}.get(max_tokens, len(names)) == len(names)
    assert sum((tmp_path / n).stat().st_size for n in names) == len(flat) * bytes_per_id + HEADER_BYTES * len(names)
    stream = opened(tmp_path, names, vocab_size)
    assert len(stream) == len(flat)
    read = stream.read(0, len(flat))
    assert read.dtype == np.int64
    assert read.tolist() == flat


def test_any_window_across_shards_is_the_window_of_the_whole(tmp_path):
    docs = documents(random.Random(2), 50, 12)
    flat = [i for doc in docs for i in doc]
    names = write_shards(tmp_path, "x", docs, 50, 25)
    assert len(names) > 3
    stream = opened(tmp_path, names, 50)
    for start in range(len(flat) + 2):
        for length in (0, 1, 2, 24, 26, 80, len(flat)):
            assert stream.read(start, start + length).tolist() == flat[start : start + length]


def test_a_document_is_never_cut(tmp_path):
    docs = documents(random.Random(3), 50, 12)
    names = write_shards(tmp_path, "x", docs, 50, 25)
    waiting = iter(docs)
    for name in names:
        rest = open_shard(tmp_path / name, 50).tolist()
        while rest:
            doc = next(waiting)
            assert rest[: len(doc)] == doc
            rest = rest[len(doc) :]


def test_a_shard_is_read_only(tmp_path):
    write_shards(tmp_path, "x", [[1, 2, 3]], 50, 25)
    ids = open_shard(tmp_path / "x-00000.tokens", 50)
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 9


def damaged(content: bytes, kind: str) -> bytes:
    return {
        "magic": b"x" + content[1:],
        "version": content[:8] + struct.pack("<I", 9) + content[12:],
        "bytes per id": content[:12] + struct.pack("<I", 3) + content[16:],
        "count": content[:16] + struct.pack("<Q", 2**63) + content[24:],
        "truncated": content[:-1],
        "extended": content + b"\0",
        "header only half": content[:40],
        "nothing": b"",
        "no ids": content[:16] + struct.pack("<Q", 0) + content[24:64],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("magic", "wrong header"),
        ("version", "version 9"),
        ("bytes per id", "3 bytes per id"),
        ("count", "its header says"),
        ("truncated", "has 69 bytes and 3 ids, its header says 70"),
        ("extended", "has 71 bytes and 3 ids, its header says 70"),
        ("header only half", "wrong header"),
        ("nothing", "wrong header"),
        ("no ids", "has 64 bytes and 0 ids"),
    ],
)
def test_damage_is_refused_with_its_place(tmp_path, kind, named):
    (name,) = write_shards(tmp_path, "x", [[1, 2, 3]], 50, 25)
    path = tmp_path / name
    open_shard(path, 50)  # control: intact before the damage
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(DataError) as caught:
        open_shard(path, 50)
    message = str(caught.value)
    assert named in message
    assert str(path) in message
    assert "\n" not in message


def test_an_id_beyond_the_vocabulary_is_named_with_its_position(tmp_path):
    (name,) = write_shards(tmp_path, "x", [[1, 2, 49, 3, 7]], 50, 25)
    open_shard(tmp_path / name, 50)
    with pytest.raises(DataError, match=r"the id 49 at position 2, beyond the vocabulary of 49 \(written for 50\)"):
        open_shard(tmp_path / name, 49)


def test_a_missing_shard_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_shard(tmp_path / "x-00000.tokens", 50)
