"""Downloads datasets of the Hugging Face hub as folders that data.source and `storyteller preprocess` read."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rich.filesize import decimal

from storyteller_ds.data.in_time import in_time
from storyteller_ds.data.known_datasets import KNOWN, KnownDataset
from storyteller_ds.data.work_folder import LOCK, put_in_place, work_folder
from storyteller_ds.durable import write_flushed
from storyteller_ds.errors import DataError
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile

ANSWER_SECONDS = 10.0
"""Time limit for the hub to say what a dataset holds (seconds)."""
PROVENANCE = "PROVENANCE.md"
_PART = ".part"
"""Name suffix of a file that is not complete."""
_CHUNK_BYTES = 1 << 23

Log = Callable[[str], None]


class RemoteFile(NamedTuple):
    """One file of a dataset."""

    size: int
    """Bytes."""
    sha256: str | None
    """In hex; the hub has it only for large files."""


class Contents(NamedTuple):
    """What the hub says about a known dataset."""

    commit: str
    license: str
    files: dict[str, RemoteFile]
    """By name."""

    @property
    def size(self) -> int:
        """Total size of all files (bytes)."""
        return sum(file.size for file in self.files.values())


def download(name: str, folder: Path, log: Log) -> Path:
    """Download a known dataset; an interrupted download is continued.

    Args:
        name: a key of KNOWN.
        folder: where to make a folder of that name.
        log: gets lines about the progress, size and license first.

    Returns:
        The folder of the dataset.

    Raises:
        DataError: huggingface_hub is missing, the hub cannot be reached or has no such files, there is no room, or the
            folder holds something else.
    """
    known, target = KNOWN[name], folder / name
    try:
        contents = _contents(name, known)
        what = f"{name}: {len(contents.files):,} file(s), {decimal(contents.size)}, license {contents.license}"
        log(f"{what} ({known.repository} at {contents.commit})")
        if target.exists():
            _check_is_there(target, contents)
            log(f"{name}: is in {target} already")
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with work_folder(target) as work:
            _check_room(work, contents)
            total = decimal(contents.size)
            with _quiet(), meanwhile(lambda: log(f"{name}: {decimal(_bytes_in(work))} of {total}"), LINE_EVERY_S):
                _fetch(known, contents, work)
            _finish(name, known, contents, work)
            put_in_place(work, target)
    except OSError as error:
        if error.filename is None:
            _unreachable(known, error)
        raise DataError(f"{target} cannot be written: {error.strerror}; name another --output_dir") from error
    log(f"{name}: in {target}; {_how_to_use(known, target)}")
    return target


def _contents(name: str, known: KnownDataset) -> Contents:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise DataError("downloads need a package: pip install huggingface_hub") from None
    try:
        info = in_time(
            lambda: HfApi().dataset_info(
                known.repository, revision=known.revision, files_metadata=True, timeout=ANSWER_SECONDS / 2
            ),
            ANSWER_SECONDS,
        )
    except _errors() as error:
        _unreachable(known, error)
    files = {
        each.rfilename: RemoteFile(each.size or 0, each.lfs.sha256 if each.lfs else None)
        for each in info.siblings or ()
        if any(fnmatch(each.rfilename, pattern) for pattern in known.files)
    }
    if not info.sha or not any(file != "README.md" for file in files):
        raise DataError(
            f"{name}: {known.repository} has no file {' or '.join(known.files)} any more; see {_page(known)}, and give "
            "the dataset itself: data.source=OWNER/NAME data.revision=COMMIT"
        )
    return Contents(info.sha, _license(info), files)


def _license(info: Any) -> str:
    tags = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
    return ", ".join(tags) or "not named by its card"


def _fetch(known: KnownDataset, contents: Contents, work: Path) -> None:
    """Download what is missing; hf_hub_download would restart each file, and the largest is gigabytes in size."""
    from huggingface_hub import HfFileSystem

    try:
        for name, file in contents.files.items():
            path, part = work / name, work / f"{name}{_PART}"
            if path.exists():
                continue
            part.parent.mkdir(parents=True, exist_ok=True)
            address = f"datasets/{known.repository}@{contents.commit}/{name}"
            with HfFileSystem().open(address, "rb", cache_type="none") as remote, part.open("ab") as local:
                remote.seek(local.tell())
                while chunk := remote.read(_CHUNK_BYTES):
                    local.write(chunk)
                    local.flush()
            _check(part, file)
            part.rename(path)
    except _errors() as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # an error of the disk
        _unreachable(known, error)


def _check(part: Path, file: RemoteFile) -> None:
    """Raises DataError if a downloaded file does not match the hub's, and removes it."""
    with part.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if _size(part) != file.size or file.sha256 not in (None, sha256):
        part.unlink()
        raise DataError(f"{part.name.removesuffix(_PART)} has come damaged, and is removed; run the same command again")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the library's progress bars and warnings: our lines cover all files, and what matters becomes an error."""
    utils, logger = import_module("huggingface_hub.utils"), logging.getLogger("huggingface_hub")
    level, silent = logger.level, utils.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not silent:
            utils.enable_progress_bars()


def _finish(name: str, known: KnownDataset, contents: Contents, work: Path) -> None:
    """Record what the dataset is and where it is from."""
    rows = "\n".join(f"| {name} | {file.size} |" for name, file in contents.files.items())
    write_flushed(
        work / PROVENANCE,
        f"# {name}\n\n{known.what}.\n\n"
        f"From {_page(known)}, revision {contents.commit}. License: {contents.license}.\n\n"
        f"| file | bytes |\n|---|---|\n{rows}\n",
    )


def _check_is_there(target: Path, contents: Contents) -> None:
    wrong = [name for name, file in contents.files.items() if _size(target / name) != file.size]
    if wrong:
        raise DataError(
            f"{target} is there, and its {wrong[0]} is not that of revision {contents.commit}; move the folder away, "
            "or name another --output_dir"
        )


def _check_room(work: Path, contents: Contents) -> None:
    missing, free = contents.size - _bytes_in(work), shutil.disk_usage(work).free
    if missing > free:
        raise DataError(
            f"{work.parent} has room for {decimal(free)}, and {decimal(missing)} are to come; make room, or name "
            "another --output_dir"
        )


def _bytes_in(folder: Path) -> int:
    return sum(_size(path) for path in folder.rglob("*") if path.name != LOCK)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # renamed in the meantime
        return 0


def _errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases come from the HTTP client, which differs between major versions of huggingface_hub.
    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (OSError, RuntimeError, ValueError, *bases)  # ValueError: an answer that is not JSON


def _unreachable(known: KnownDataset, error: Exception) -> NoReturn:
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        raise DataError(f"{known.repository}: the hub refuses it ({text:.200}); see {_page(known)}") from error
    raise DataError(
        f"{known.repository}: the Hugging Face hub at {ENDPOINT} cannot be reached ({text:.200}); check the network, "
        "and run the same command again: it goes on where it was"
    ) from error


def _page(known: KnownDataset) -> str:
    return f"https://huggingface.co/datasets/{known.repository}"


def _how_to_use(known: KnownDataset, target: Path) -> str:
    field = f" data.text_field={known.text_field}" if known.text_field not in (None, "text") else ""
    return f"train on it with data.source={target}{field}"
