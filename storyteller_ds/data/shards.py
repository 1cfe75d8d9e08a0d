"""Token ids on disk, mapped into memory: a 64-byte header, then the ids in little-endian order.

bytes 0-7 magic, 8-11 format version, 12-15 bytes per id, 16-23 number of ids, 24-31 vocabulary size,
32-63 sha256 of bytes 0-31 and of the ids
"""

import hashlib
import itertools
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import open_regular

MAGIC = b"STORYTOK"
VERSION = 2
HEADER_BYTES = 64
_HEADER = struct.Struct("<8sIIQQ")
_DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_CHECK_CHUNK = 1 << 24


def shard_name(split: str, number: int) -> str:
    """File name of a split's shard, counted from 0."""
    return f"{split}-{number:05d}.tokens"


def write_shards(
    folder: Path,
    split: str,
    documents: Iterable[Sequence[int] | NDArray[Any]],
    vocab_size: int,
    max_tokens: int,
    first: int = 0,
) -> list[str]:
    """Write documents as shards of about max_tokens ids each, never cutting a document; returns the file names.

    Args:
        folder: where to write; must exist.
        split: prefix of the file names.
        documents: ids of each document, separators included.
        vocab_size: all ids are below it.
        max_tokens: a shard is closed once it has this many ids.
        first: number of the first shard.
    """
    dtype = _DTYPES[2 if vocab_size <= 1 << 16 else 4]
    names: list[str] = []
    rest = iter(documents)
    for head in rest:
        names.append(shard_name(split, first + len(names)))
        _write_shard(folder / names[-1], itertools.chain([head], rest), dtype, vocab_size, max_tokens)
    return names


def _write_shard(
    path: Path,
    documents: Iterable[Sequence[int] | NDArray[Any]],
    dtype: np.dtype[Any],
    vocab_size: int,
    max_tokens: int,
) -> None:
    """Write documents until there are max_tokens ids, with one document in memory at a time."""
    size = 0
    with path.open("w+b") as file:
        file.write(bytes(HEADER_BYTES))
        for document in documents:
            file.write(np.asarray(document, dtype=dtype).tobytes())
            size += len(document)
            if size >= max_tokens:
                break
        header = _HEADER.pack(MAGIC, VERSION, dtype.itemsize, size, vocab_size)
        digest = hashlib.sha256(header)
        file.seek(HEADER_BYTES)
        while chunk := file.read(_CHECK_CHUNK):
            digest.update(chunk)
        # Written last, so that an interrupted file is not a shard.
        file.seek(0)
        file.write(header + digest.digest())
        file.flush()
        os.fsync(file.fileno())


def open_shard(path: Path, vocab_size: int) -> NDArray[Any]:
    """The ids of a shard, memory-mapped and read-only, after checking header, length, checksum and every id.

    Args:
        path: the shard.
        vocab_size: rows of the model's embedding; an id beyond it would read out of bounds.

    Raises:
        DataError: the shard is damaged.
        UntrustedFileError, OSError: there is no such file.
    """
    with open_regular(path) as file:
        header = file.read(HEADER_BYTES)
        file_bytes = os.fstat(file.fileno()).st_size
    if len(header) < HEADER_BYTES or header[:8] != MAGIC:
        raise DataError(f"token shard {path} has a wrong header, it is not one of ours")
    version, itemsize, count, written_vocab = _HEADER.unpack_from(header)[1:]
    if version != VERSION or itemsize not in _DTYPES:
        raise DataError(f"token shard {path} has a wrong header (version {version}, {itemsize} bytes per id)")
    expected = HEADER_BYTES + count * itemsize
    if file_bytes != expected or count == 0:
        raise DataError(f"token shard {path} has {file_bytes} bytes and {count} ids, its header says {expected} bytes")
    digest, start = hashlib.sha256(header[: _HEADER.size]), 0
    # Read, not mapped: mapped pages that were accessed count as memory of this process.
    with open_regular(path) as file:
        file.seek(HEADER_BYTES)
        while content := file.read(_CHECK_CHUNK):
            digest.update(content)
            chunk = np.frombuffer(content, dtype=_DTYPES[itemsize])
            highest = int(chunk.max())
            if highest >= vocab_size:
                position = start + int(chunk.argmax())
                raise DataError(
                    f"token shard {path} has the id {highest} at position {position}, beyond the vocabulary of "
                    f"{vocab_size} (written for {written_vocab})"
                )
            start += len(chunk)
    if digest.digest() != header[_HEADER.size :]:
        raise DataError(f"token shard {path} is damaged, its checksum is another")
    return np.memmap(path, dtype=_DTYPES[itemsize], mode="r", offset=HEADER_BYTES, shape=(count,))


def shard_digest(path: Path) -> str:
    """The checksum in a shard's header, in hex; open_shard verifies it."""
    with open_regular(path) as file:
        return file.read(HEADER_BYTES)[_HEADER.size :].hex()


class TokenStream:
    """Several shards read as one long row of ids."""

    def __init__(self, shards: Sequence[NDArray[Any]]) -> None:
        self._shards = [shard.view(np.ndarray) for shard in shards]  # np.memmap is slow for a few ids
        self._begins = np.cumsum([0, *map(len, shards)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ids from start to stop (exclusive) as int64; fewer if the stream ends before."""
        bounds = zip(self._shards, self._begins.tolist(), strict=False)
        return np.concatenate(
            [shard[max(0, start - begin) : max(0, stop - begin)].astype(np.int64) for shard, begin in bounds]
        )

    def take(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids at an array of places (0 to len - 1) of any shape, as int64."""
        if len(self._shards) == 1:
            return self._shards[0][places].astype(np.int64)
        ids = np.empty(places.shape, dtype=np.int64)
        shard = np.searchsorted(self._begins, places, side="right") - 1
        for number in np.unique(shard):
            here = shard == number
            ids[here] = self._shards[number][places[here] - self._begins[number]]
        return ids
