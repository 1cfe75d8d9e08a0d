"""Cleaned stories on disk, between the steps that look at one story and those that compare all of them.

A story takes some 100 bytes of memory, whatever its length. Only the process that made the folder writes to it.
"""

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.data.cleaning.clean import PERMUTATIONS, Cleaned

_ROW = np.dtype(
    [
        ("text_bytes", "<u4"),
        ("characters", "<u4"),
        ("words", "<u4"),
        ("shingles", "<u4"),
        ("digest", "S32"),
        ("split", "i1"),
    ]
)
"""`split`: index in splits.SPLITS of the split in the name of the file; -1: none."""
_TEXTS, _SHINGLES, _SIGNATURES, _ROWS = "texts", "shingles", "signatures", "rows"


class SpoolWriter:
    """Appends cleaned stories to the files of a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._exits = contextlib.ExitStack()
        self._files: dict[str, BinaryIO] = {
            name: self._exits.enter_context((folder / name).open("wb"))
            for name in (_TEXTS, _SHINGLES, _SIGNATURES, _ROWS)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def append(self, cleaned: Cleaned, split: int = -1) -> None:
        """Write a batch."""
        rows = np.zeros(len(cleaned.texts), dtype=_ROW)
        encoded = [text.encode(errors="surrogatepass") for text in cleaned.texts]
        rows["text_bytes"] = [*map(len, encoded)]
        rows["characters"] = [*map(len, cleaned.texts)]
        rows["words"] = cleaned.word_counts
        rows["shingles"] = [*map(len, cleaned.shingles)]
        rows["digest"] = cleaned.digests
        rows["split"] = split
        self._files[_TEXTS].writelines(encoded)
        self._files[_SHINGLES].writelines(each.tobytes() for each in cleaned.shingles)
        self._files[_SIGNATURES].write(cleaned.signatures.tobytes())
        self._files[_ROWS].write(rows.tobytes())


class Spool:
    """The stories in the order in which they were written; several folders are read one after the other."""

    def __init__(self, folders: Sequence[Path]) -> None:
        rows = [np.fromfile(folder / _ROWS, dtype=_ROW) for folder in folders]
        self._parts = [_Part(folder, each) for folder, each in zip(folders, rows, strict=True)]
        self._firsts = [*itertools.accumulate(map(len, rows), initial=0)]
        self._rows = np.concatenate(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def characters(self) -> NDArray[np.uint32]:
        """[stories] Number of characters of each."""
        return self._rows["characters"]

    @property
    def words(self) -> NDArray[np.uint32]:
        """[stories] Number of words of each."""
        return self._rows["words"]

    @property
    def given_splits(self) -> NDArray[np.int8]:
        """[stories] The split in the name of each one's file; -1: none."""
        return self._rows["split"]

    @property
    def digests(self) -> NDArray[np.uint64]:
        """[stories, 4] sha256 of the words of each, as big-endian numbers in native order."""
        # numpy drops trailing zero bytes of "S32" values, but not from the memory below.
        raw = np.ascontiguousarray(self._rows["digest"]).view(">u8")
        return raw.reshape(len(self), 4).astype(np.uint64)

    def text(self, index: int) -> str:
        """The text of a story."""
        part, i = self._part(index)
        return part.text(i)

    def shingles(self, index: int) -> NDArray[np.uint32]:
        """[N] The shingles of a story, as made by shingles_of."""
        part, i = self._part(index)
        return part.shingles(i)

    def band(self, columns: slice) -> NDArray[np.uint32]:
        """[stories, columns] These columns of all signatures."""
        return np.concatenate([part.signatures[:, columns] for part in self._parts])

    def signatures(self, indices: Sequence[int]) -> NDArray[np.uint32]:
        """[len(indices), PERMUTATIONS] The signatures of these stories."""
        return np.stack([part.signatures[i] for part, i in map(self._part, indices)])

    def __iter__(self) -> Iterator[str]:
        return map(self.text, range(len(self)))

    def _part(self, index: int) -> tuple["_Part", int]:
        which = bisect.bisect_right(self._firsts, index) - 1
        return self._parts[which], index - self._firsts[which]


class _Part:
    """One folder, with its large files mapped into memory."""

    def __init__(self, folder: Path, rows: NDArray[np.void]) -> None:
        def mapped(name: str, dtype: type[np.generic]) -> NDArray[Any]:
            # An empty file cannot be mapped.
            path = folder / name
            return (
                np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype=dtype)
            )

        self._texts: NDArray[np.uint8] = mapped(_TEXTS, np.uint8)
        self._shingles: NDArray[np.uint32] = mapped(_SHINGLES, np.uint32)
        self.signatures = mapped(_SIGNATURES, np.uint32).reshape(-1, PERMUTATIONS)
        self._text_ends = np.cumsum(rows["text_bytes"], dtype=np.int64)
        self._shingle_ends = np.cumsum(rows["shingles"], dtype=np.int64)

    def text(self, i: int) -> str:
        return bytes(self._texts[self._start(self._text_ends, i) : self._text_ends[i]]).decode(errors="surrogatepass")

    def shingles(self, i: int) -> NDArray[np.uint32]:
        return self._shingles[self._start(self._shingle_ends, i) : self._shingle_ends[i]]

    @staticmethod
    def _start(ends: NDArray[np.int64], i: int) -> int:
        return int(ends[i - 1]) if i else 0
