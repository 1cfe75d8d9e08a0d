"""Headers of safetensors files: what we accept is what the library reads, and never more than the file holds."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from storyteller_ds.untrusted import TensorEntry, UntrustedFileError, check_safetensors
from tests.support.mutations import mutated_bytes, mutated_value, put

SEED = 20250103
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(5, dtype=torch.uint8), "c": torch.ones(())}


def entries(path: Path) -> dict[str, TensorEntry] | None:
    try:
        return check_safetensors(path)
    except UntrustedFileError:
        return None


def library_entries(path: Path) -> dict[str, TensorEntry] | None:
    """The independent reference: the library, and every tensor really read."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                piece = file.get_slice(name)
                found[name] = TensorEntry(piece.get_dtype(), tuple(piece.get_shape()))
                assert tuple(file.get_tensor(name).shape) == found[name].shape
            return found
    except SafetensorError:
        return None


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    assert entries(path) == library_entries(path) is not None
    return path


def agrees(path: Path) -> bool:
    """Whether we accept it; then the library reads the same, or refuses it in its own way."""
    ours = entries(path)
    if ours is not None:
        assert library_entries(path) in (None, ours)
        size = path.stat().st_size
        assert sum(torch.Size(entry.shape).numel() for entry in ours.values()) <= size
    return ours is not None


def test_every_flipped_bit_is_refused_or_harmless(good):
    whole = good.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    accepted = 0
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        put(good, bytes(content))
        is_accepted = agrees(good)
        assert is_accepted or bit // 8 < header, bit  # the numbers are the manifest's to check
        accepted += is_accepted and bit // 8 < header
    assert 0 < accepted < 4 * header  # letters of names


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
        accepted += agrees(path)
    assert 0.01 < accepted / count < 0.9


def test_1000_fuzzed_headers_are_refused_or_read_as_the_library_does(good):
    fuzz(good, 1000)


@pytest.mark.faults
def test_5000_fuzzed_headers_are_refused_or_read_as_the_library_does(good):
    fuzz(good, 5000)
