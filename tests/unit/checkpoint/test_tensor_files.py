"""Tensor files: what safetensors and we refuse before anything is allocated."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from storyteller_ds.checkpoint.tensor_files import TensorEntry, TensorFiles
from storyteller_ds.errors import CheckpointError


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def test_a_good_file_is_described_as_it_is(tmp_path):
    path = tmp_path / "good.safetensors"
    tensors = {
        "a": torch.ones(2, 3),
        "empty": torch.ones(0, 4),
        "one": torch.tensor(1.0),
        "byte": torch.arange(7, dtype=torch.uint8),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    files = TensorFiles([path])
    assert files.headers == {
        "a": TensorEntry("F32", (2, 3)),
        "empty": TensorEntry("F32", (0, 4)),
        "one": TensorEntry("F32", ()),
        "byte": TensorEntry("U8", (7,)),
    }
    assert all(torch.equal(files[name], tensors[name]) for name in tensors)


HOSTILE = {
    "nothing": (b"", b"", 0),
    "header beyond the file": ({}, b"", 99),
    "header of 2^63 bytes": ({}, b"", 2**63),
    "header of the largest number": ({}, b"", 2**64 - 1),
    "header that is not JSON": (b"{,,}", b"", None),
    "header that is not text": (b"\xff\xfe", b"", None),
    "header that is not an object": ([], b"", None),
    "key twice": (b'{"a": {}, "a": {}}', b"", None),
    "entry that is not an object": ({"a": 1}, b"", None),
    "entry left out": ({"a": {"dtype": "F32", "shape": []}}, b"", None),
    "unknown dtype": ({"a": entry("F31")}, b"8" * 8, None),
    "dtype that is not text": ({"a": entry([])}, b"8" * 8, None),
    "negative length": ({"a": entry(shape=(-2,))}, b"8" * 8, None),
    "two negative lengths": ({"a": entry(shape=(-2, -1))}, b"8" * 8, None),
    "length that is true": ({"a": entry(shape=(2, True))}, b"8" * 8, None),
    "length that is a fraction": ({"a": entry(shape=(2.0,))}, b"8" * 8, None),
    "shape that is a number": ({"a": {**entry(), "shape": 2}}, b"8" * 8, None),
    "shape that overflows": ({"a": entry(shape=(2**62, 2**62))}, b"8" * 8, None),
    "shape that wraps round to 8": ({"a": entry(shape=(2**61, 2**3, 2))}, b"8" * 8, None),
    "a terabyte promised": ({"a": entry(shape=(2**38,), offsets=(0, 2**40))}, b"8" * 8, None),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, b"8" * 8, None),
    "three offsets": ({"a": entry(offsets=(0, 8, 8))}, b"8" * 8, None),
    "offsets the wrong way": ({"a": entry(offsets=(8, 0))}, b"8" * 8, None),
    "gap at the beginning": ({"a": entry(offsets=(4, 12))}, b"8" * 12, None),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, b"8" * 12, None),
    "the same bytes twice": ({"a": entry(), "b": entry()}, b"8" * 8, None),
    "file too short": ({"a": entry()}, b"8" * 7, None),
    "file too long": ({"a": entry()}, b"8" * 9, None),
    "metadata that is not an object": ({"__metadata__": 1}, b"", None),
    "metadata that is not text": ({"__metadata__": {"a": 1}}, b"", None),
}


@pytest.mark.parametrize(("header", "data", "length"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_before_anything_is_allocated(tmp_path, header, data, length):
    path = write(tmp_path / "x.safetensors", header, data, length)
    with pytest.raises(CheckpointError) as caught:
        TensorFiles([path])
    assert str(caught.value).startswith(f"{tmp_path}: x.safetensors is damaged: ")
    assert str(caught.value).endswith("; use another step")


@pytest.mark.parametrize("dtype", ["F16", "I32", "F8_E4M3", "F4", "C64"])
def test_a_dtype_that_no_checkpoint_has_is_refused(tmp_path, dtype):
    shape = {"F16": 4, "I32": 2, "F4": 16, "C64": 1}.get(dtype, 8)
    path = write(tmp_path / "x.safetensors", {"a": entry(dtype, (shape,))}, b"8" * 8)
    with pytest.raises(CheckpointError, match=f"has a, which is {dtype}; do not trust it"):
        TensorFiles([path])


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry()},  # the control of all the above
        {"a": entry(x=1)},
        b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2),
    ],
)
def test_what_the_library_lets_pass_is_read_as_it_is(tmp_path, header):
    files = TensorFiles([write(tmp_path / "x", header, b"8" * 8)])
    assert files.headers == {"a": TensorEntry("F32", (2,))}
    assert files["a"].shape == (2,)


def test_a_long_header_of_zeros_and_many_dimensions_are_harmless(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:  # sparse: takes no disk space
        file.write(struct.pack("<Q", 2**24))
        file.truncate(8 + 2**24)
    with pytest.raises(CheckpointError, match="is damaged"):
        TensorFiles([path])
    files = TensorFiles([write(path, {"a": entry(shape=(2, *[1] * 300))}, b"8" * 8)])
    assert files["a"].numel() == 2


@pytest.mark.timeout(30)
def test_what_is_no_file_is_not_waited_on(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "missing", tmp_path):
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
            TensorFiles([path])
