"""Headers of safetensors files are refused in one line, or read as they are but never beyond the file's end."""

import json
import math
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from storyteller_ds.checkpoint.tensor_files import TensorEntry, TensorFiles
from storyteller_ds.errors import CheckpointError
from tests.support.mutations import mutated_bytes, mutated_value, put

SEED = 20250103
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(5, dtype=torch.uint8), "c": torch.ones(())}
DTYPES = {torch.float32: "F32", torch.uint8: "U8"}


def entries(path: Path) -> dict[str, TensorEntry] | None:
    """The entries of the file, whose tensors are all read; None: it is refused."""
    try:
        files = TensorFiles([path])
    except CheckpointError:
        return None
    for name, entry in files.headers.items():
        assert tuple(files[name].shape) == entry.shape
    return files.headers


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    assert entries(path) == {name: TensorEntry(DTYPES[each.dtype], tuple(each.shape)) for name, each in TENSORS.items()}
    return path


def is_accepted(path: Path) -> bool:
    """Whether it is read; if so, check that its tensors are no larger than the file."""
    found = entries(path)
    if found is not None:
        assert sum(math.prod(entry.shape) for entry in found.values()) <= path.stat().st_size
    return found is not None


def test_every_flipped_bit_is_refused_or_harmless(good):
    whole = good.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    accepted = 0
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        put(good, bytes(content))
        is_read = is_accepted(good)
        assert is_read or bit // 8 < header, bit  # changed data is caught by the manifest
        accepted += is_read and bit // 8 < header
    assert 0 < accepted < 4 * header  # such as flips in the letters of names


def test_every_truncation_is_refused(good):
    whole = good.read_bytes()
    for length in range(len(whole)):
        put(good, whole[:length])
        assert entries(good) is None, length


def fuzz(path: Path, count: int) -> None:
    rng = random.Random(SEED)
    whole = path.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8:end]), whole[end:]
    accepted = 0
    for _ in range(count):
        text = json.dumps(mutated_value(rng, header)).encode()
        if rng.random() < 0.3:
            text = mutated_bytes(rng, whole[8:end])
        length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, len(text) + 1, 2**31, 2**63, 2**64 - 1))
        put(path, struct.pack("<Q", length) + text + data)
        accepted += is_accepted(path)
    assert 0.01 < accepted / count < 0.9


def test_1000_fuzzed_headers_are_refused_or_read_as_they_are(good):
    fuzz(good, 1000)


@pytest.mark.faults
def test_5000_fuzzed_headers_are_refused_or_read_as_they_are(good):
    fuzz(good, 5000)
