"""The bytes of a text file in UTF-8, whatever its compression and encoding, read piece by piece."""

import bz2
import codecs
import contextlib
import gzip
import importlib
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import open_regular

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of packed files; how a file is packed is recognized by its content."""
_CHUNK_BYTES = 1 << 16
_MARKS = {
    # UTF-32 first: its mark begins with that of UTF-16.
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""Kinds of compression, by how the files begin."""


@contextlib.contextmanager
def opened_as_utf8(path: Path, encoding: str | None) -> Iterator[BinaryIO]:
    """Open a file unpacked (gzip, bzip2, xz, zstd) and in UTF-8; `tell` counts the resulting bytes.

    Args:
        path: path of the file.
        encoding: its encoding; None: what its byte order mark says, else the bytes as they are.

    Raises:
        DataError: it is damaged, or has bytes that its encoding does not allow; raised on reaching the place.
        UntrustedFileError: it is not a regular file.
        OSError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        head = _head(file)
        if packer := next((name for start, name in _PACKERS.items() if head.startswith(start)), None):
            stack.enter_context(_unpacking(path))
            with open_regular(path) as another:  # not every unpacked stream can seek back
                head = _unpacked(another, packer, path).read(len(head))
            file = _unpacked(file, packer, path)
        found = encoding or next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
        if found is None:
            yield file
        else:
            yield cast(BinaryIO, io.BufferedReader(_AsUtf8(file, found, path)))


def _head(file: BinaryIO) -> bytes:
    head = file.read(max(map(len, (*_MARKS, *_PACKERS))))
    file.seek(0)
    return head


def _unpacked(file: BinaryIO, packer: str, path: Path) -> BinaryIO:
    if packer == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if packer == "bzip2":
        return cast(BinaryIO, bz2.BZ2File(file))
    if packer == "xz":
        return cast(BinaryIO, lzma.LZMAFile(file))
    zstd = _zstd()
    if zstd is None:
        raise DataError(f"{path} is packed with zstd; pip install backports.zstd, or unpack it")
    return cast(BinaryIO, zstd.ZstdFile(file))


def _zstd() -> Any:
    """Python's zstd module, which older versions get from a package; None: there is none."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    return None


@contextlib.contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    errors: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
    if (zstd := _zstd()) is not None:
        errors = (*errors, zstd.ZstdError)
    try:
        yield
    except errors as error:
        raise DataError(f"{path} cannot be unpacked: {error}; it is damaged or cut off, get it again") from None


class _AsUtf8(io.RawIOBase):
    """The text of a file, in UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str, path: Path) -> None:
        self._file, self._encoding, self._path = file, encoding, path
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._read, self._given, self._left = 0, 0, b""

    def readable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes of UTF-8 read so far."""
        return self._given

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        is_over = False
        while not self._left and not is_over:
            chunk = self._file.read(_CHUNK_BYTES)
            is_over = not chunk
            self._read += len(chunk)
            self._left = self._decoded(chunk, is_over)
        given, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(given)] = given
        self._given += len(given)
        return len(given)

    def _decoded(self, chunk: bytes, is_over: bool) -> bytes:
        try:
            return self._decoder.decode(chunk, is_over).encode()
        except UnicodeDecodeError as error:
            position = self._read - len(error.object) + error.start
            raise DataError(
                f"{self._path} is not {self._encoding}: byte 0x{error.object[error.start]:02x} at position {position}; "
                "set data.encoding to the one that it has"
            ) from None
        except UnicodeError as error:
            # Half a surrogate pair, which some encodings let through; or UTF-16 without its byte order mark.
            reason = error.reason if isinstance(error, UnicodeEncodeError) else error
            raise DataError(
                f"{self._path} is not {self._encoding}: {reason}; set data.encoding to the one that it has"
            ) from None
