"""Documents out of a Hugging Face dataset: from the hub at a fixed commit, or from a local folder."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

from storyteller_ds.data.sources.dataset_card import check_cards, names_files
from storyteller_ds.data.sources.datasets_library import (
    OTHER_SOURCES,
    library_errors,
    one_line,
    quiet,
    require_datasets,
)
from storyteller_ds.data.sources.file_kind import refuse_lfs_pointer
from storyteller_ds.data.sources.text_file import MARKER
from storyteller_ds.data.sources.text_folder import list_folder, not_read
from storyteller_ds.errors import ConfigError, DataError, UserError
from storyteller_ds.untrusted import UntrustedFileError
from storyteller_ds.user_paths import expand_home

PINNED_REVISIONS = {"roneneldan/TinyStories": "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"}
PINNED_SPLITS = ("train", "validation")
"""Of each of them at its commit."""

# The hub must answer one small question within this before anything is downloaded. The outer bound
# also covers what the HTTP client's own timeout does not: name lookup, and an answer that trickles.
PROBE_TIMEOUT_SECONDS = 4.0
PROBE_TOTAL_SECONDS = 8.0

# Part of the fingerprint: raised whenever the same rows would give other documents.
FORMAT = "storyteller hugging face 1"
READ_ROWS = 1000
HASH_BYTES = 1 << 20
# The library has readers for some thirty kinds of files. These hold text, and have been looked at: nothing in
# them is unpickled, and none is an archive, whose members could lie anywhere or be of any size once unpacked.
READERS = ("parquet", "arrow", "json", "csv", "text")
DATA_SUFFIXES = (".parquet", ".arrow", ".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_FOLDER_SUFFIXES = (*DATA_SUFFIXES, ".txt")

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPLIT = re.compile(r"\w+(\.\w+)*")

_OTHER_SEPARATORS = ";\t|"
"""What a .csv may have between its columns, and the library does not look for."""


@dataclass(frozen=True)
class HuggingFaceSource:
    """One split of a dataset on the hub (`OWNER/NAME`) or in a local folder of the hub's layout.

    A hub dataset is read from the `datasets` cache where it is there at the same commit, so that it
    needs no network again; otherwise it is downloaded first, or with `streaming` read on the way. A
    local folder is always read in place, which spares a second copy of it in the cache; it has no
    revision, so one that is meant for another dataset of the run is passed over.

    Raises DataError on construction for a name that is neither a folder nor a hub name, a revision that
    is missing or not a commit sha, and a split or a max_documents that cannot be.
    """

    dataset: str
    split: str
    revision: str | None = None
    text_field: str = "text"
    streaming: bool = False
    max_documents: int | None = None

    def __post_init__(self) -> None:
        if self.max_documents is not None and self.max_documents < 1:
            raise DataError(f"max_documents is {self.max_documents}; give 1 or more, or null for all")
        if not _SPLIT.fullmatch(self.split):
            raise DataError(
                f"{self.split!r} is not the name of a split; give a plain name such as train, "
                "and max_documents to read only a part"
            )
        if self._folder is not None:
            return
        if not _HUB_NAME.fullmatch(self.dataset):
            raise DataError(
                f"{self.dataset} is neither a folder here nor a hub name of the form OWNER/NAME; check data.source"
            )
        self._check_revision()

    def _check_revision(self) -> None:
        if self.revision is None and self.dataset not in PINNED_REVISIONS:
            raise DataError(
                f"{self.dataset} is no folder here, and as a hub dataset it has no fixed revision, so its "
                "data could change under a run; add data.revision=<commit sha>, from "
                f"https://huggingface.co/datasets/{self.dataset}/commits/main"
            )
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            raise DataError(
                f"revision {self.revision!r} of {self.dataset} can move to other data; "
                "give data.revision=<commit sha>, all 40 lower-case hex digits of it"
            )

    @property
    def name(self) -> str:
        """The dataset, its commit where it comes from the hub, and the split."""
        at = "" if self._folder is not None else f"@{self._commit[:8]}"
        return f"{self.dataset}{at} ({self.split})"

    @property
    def fingerprint(self) -> str:
        """The sha256 of what is asked for; of a local folder, instead of where it lies, of its content.

        Needs no network for a hub dataset, whose commit stands for its content. Reads all data files of
        the split in a local folder. Raises DataError when the folder has no such split or data files
        that cannot be read, or when the `datasets` library is not installed.
        """
        if self._folder is None:
            origin = [self.dataset, self._commit]
        else:
            # Without the path: a run moved to another machine continues on the same folder.
            origin = ["local folder", *self._content_hashes(self._folder)]
        asked = [FORMAT, origin, self.split, self.text_field, self.max_documents]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """Yield the text of each row, with LF line ends, stripped; rows without text are left out.

        Raises DataError, at the first document, when `datasets` is not installed, the hub cannot be
        reached, or dataset, split or text field do not exist; and when the data cannot be read or hold
        no document.
        """
        count = 0
        for text in self._texts():
            document = text.replace("\r\n", "\n").replace("\r", "\n").strip()
            if MARKER in document:  # as in text files, of which the library makes a document of every line
                raise DataError(
                    f"{self.name} has {MARKER} within a text, where it would be learnt as any other word; "
                    "put the stories into a text file, which is split there, and give data.source=PATH/TO/stories.txt"
                )
            if document:
                yield document
                count += 1
                if count == self.max_documents:
                    return
        if count == 0:
            raise DataError(f"{self.name} has no document in its field {self.text_field!r}; {OTHER_SOURCES}")

    def remarks(self) -> list[str]:
        """Which data files of a local folder are in none of its splits: the library passes over them in silence."""
        folder = self._folder
        if folder is None or names_files(folder):
            return []
        require_datasets()
        from datasets.data_files import FILES_TO_IGNORE

        with self._reading(), quiet():
            files = self._folder_builder(folder).config.data_files or {}
        read = {Path(file).resolve() for split in files.values() for file in split}
        data = [path for path in list_folder(folder).others if path.suffix.lower() in DATA_SUFFIXES]
        unread = [path for path in data if path.resolve() not in read and path.name not in FILES_TO_IGNORE]
        return not_read([Path(self.dataset, path.relative_to(folder)) for path in unread], "data files")

    def has_split(self, split: str) -> bool:
        """Whether the dataset has a split; asks the hub, unless the commit is pinned or cached.

        Raises DataError for a local folder that cannot be read. A hub that cannot be asked is taken to have the
        split: a corpus that was prepared from it is found then, and otherwise reading it says what is wrong.
        """
        if self._folder is None and self._commit == PINNED_REVISIONS.get(self.dataset):
            return split in PINNED_SPLITS
        try:
            require_datasets()
            with self._reading(), quiet():
                return split in self._split_names()
        except DataError:
            if self._folder is not None:
                raise
            return True

    def _split_names(self) -> list[str]:
        if self._folder is not None:
            return list(self._folder_builder(self._folder).config.data_files or {})
        cached = self._cached_builder()
        return list(cached.info.splits if cached is not None else self._hub_builder().config.data_files or {})

    @property
    def _folder(self) -> Path | None:
        path = expand_home(self.dataset)
        return path.resolve() if path.is_dir() else None

    @property
    def _commit(self) -> str:
        return self.revision or PINNED_REVISIONS[self.dataset]

    def _texts(self) -> Iterator[str]:
        batches = self._open().iter(batch_size=READ_ROWS)
        while True:
            # Around each step, not the loop: the caller's code between two documents keeps its warnings.
            with self._reading(), quiet():
                batch = next(batches, None)
            if batch is None:
                return
            for text in batch[self.text_field]:
                if isinstance(text, str):
                    yield text
                elif text is not None:
                    raise DataError(
                        f"field {self.text_field!r} of {self.name} holds {type(text).__name__}, not "
                        "text; name another with data.text_field"
                    )

    def _open(self) -> Any:
        """Return the rows of the split, with the text field only."""
        require_datasets()
        with self._reading(), quiet():
            splits = self._load_splits()
            self._check_split(splits)
            rows = splits[self.split]
            # Formats that do not name their fields ahead, such as JSON lines, show them in a row.
            fields = rows.column_names or list(next(iter(rows), {}))
            if len(fields) == 1 and set(fields[0]) & set(_OTHER_SEPARATORS):
                raise DataError(
                    f"{self.name} would be read as one column, named {fields[0]!r}; separate the columns by commas in "
                    ".csv and by tabs in .tsv"
                )
            if fields and self.text_field not in fields:
                raise DataError(
                    f"{self.name} has no field {self.text_field!r}; set data.text_field to one of: {', '.join(fields)}"
                )
            return rows.select_columns([self.text_field]) if fields else rows

    def _load_splits(self) -> Any:
        if self._folder is not None:
            return self._folder_builder(self._folder).as_streaming_dataset()
        cached = self._cached_builder()
        if cached is not None:
            return cached.as_dataset()
        builder = self._hub_builder()
        if self.streaming:
            return builder.as_streaming_dataset()
        builder.download_and_prepare()
        return builder.as_dataset()

    def _hub_builder(self) -> Any:
        """The library's choice of a reader and of files on the hub, both checked."""
        import datasets

        self._probe_hub()
        builder = datasets.load_dataset_builder(self.dataset, revision=self._commit)
        # When the hub fails half-way, the library falls back on the newest commit in its cache.
        if builder.hash != self._commit:
            self._unreachable("the connection was lost")
        self._check_files(builder, f"hf://datasets/{self.dataset}@{self._commit}")
        return builder

    def _folder_builder(self, folder: Path) -> Any:
        """The library's choice of a reader and of files in a local folder, both checked."""
        import datasets

        check_cards(folder, self.dataset)
        builder = datasets.load_dataset_builder(str(folder))
        self._check_files(builder, str(folder))
        return builder

    def _check_files(self, builder: Any, home: str) -> None:
        """Refuse kinds of files that we do not read, and files elsewhere, which a dataset's card can name.

        Args:
            builder: the library's choice of a reader and of files for it.
            home: the folder, or the address of the commit, that all files must be below.
        """
        if builder.name not in READERS:
            raise DataError(
                f"{self.dataset} would be read as {builder.name}; the kinds that are read: {', '.join(READERS)}"
            )
        for file in (str(file) for files in (builder.config.data_files or {}).values() for file in files):
            path = Path(file)
            if self._folder is None:
                is_outside = not file.startswith(f"{home}/") or ".." in file.split("/")
            else:
                is_outside = not path.resolve().is_relative_to(home) or not path.is_file()
                if path.suffix not in _FOLDER_SUFFIXES:
                    raise DataError(f"{file} is packed; unpack it, so that it ends in {', '.join(_FOLDER_SUFFIXES)}")
            if is_outside:
                raise DataError(f"{self.dataset} names the file {file}, which is not one of its own; {OTHER_SOURCES}")
            if self._folder is not None:
                refuse_lfs_pointer(path)

    def _check_split(self, available: Iterable[Any]) -> None:
        names = [str(name) for name in available]
        if self.split not in names:
            raise DataError(f"{self.dataset} has no split {self.split!r}; it has: {', '.join(names) or 'none'}")

    def _cached_builder(self) -> Any:
        """Return a reader of what an earlier run prepared of this very commit, or None."""
        from datasets import config
        from datasets.naming import camelcase_to_snakecase
        from datasets.packaged_modules.cache.cache import Cache

        owner, short_name = self.dataset.split("/")
        root = Path(config.HF_DATASETS_CACHE).expanduser()
        # Only "default": of other configurations the cache does not say which one the hub would choose.
        prepared = (root / f"{owner}___{camelcase_to_snakecase(short_name)}" / "default").glob(
            f"*/{self._commit}/dataset_info.json"
        )
        folder = next((info.parent for info in sorted(prepared)), None)
        if folder is None:
            return None
        return Cache(
            dataset_name=short_name,
            repo_id=self.dataset,
            config_name="default",
            version=folder.parent.name,
            hash=self._commit,
        )

    def _probe_hub(self) -> None:
        """Ask the hub for the commit, so that a dead network is an error in seconds, not in minutes."""
        from datasets import config
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if config.HF_HUB_OFFLINE:
            self._unreachable("offline mode is set (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)")
        failures = library_errors()
        answer: Future[None] = Future()

        def ask() -> None:
            try:
                HfApi(endpoint=config.HF_ENDPOINT).dataset_info(
                    self.dataset, revision=self._commit, timeout=PROBE_TIMEOUT_SECONDS
                )
            except failures as error:
                answer.set_exception(error)
            else:
                answer.set_result(None)

        # A daemon: the program must be able to end while a name lookup still hangs.
        Thread(target=ask, name="hub probe", daemon=True).start()
        try:
            answer.result(timeout=PROBE_TOTAL_SECONDS)
        except GatedRepoError as error:
            raise DataError(
                f"{self.dataset} is gated: ask for access on https://huggingface.co/datasets/{self.dataset} "
                "and run `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise DataError(
                f"{self.dataset} has no commit {self._commit}; take data.revision from "
                f"https://huggingface.co/datasets/{self.dataset}/commits/main"
            ) from error
        except RepositoryNotFoundError as error:
            raise DataError(
                f"{self.dataset} does not exist on the hub, or is private; check data.source, or run `hf auth login`"
            ) from error
        except TimeoutError as error:
            self._unreachable(f"no answer within {PROBE_TOTAL_SECONDS:.0f} s", error)
        except failures as error:
            self._unreachable(one_line(error), error)

    def _unreachable(self, why: str, cause: BaseException | None = None) -> NoReturn:
        from datasets import config

        raise DataError(
            f"the Hugging Face hub at {config.HF_ENDPOINT} cannot be reached for {self.dataset} ({why}), "
            f"and this commit is not cached; check the network, or {OTHER_SOURCES}"
        ) from cause

    def _content_hashes(self, folder: Path) -> list[str]:
        require_datasets()
        with self._reading(), quiet():
            # The library's own choice of files, in its order: exactly what documents() reads.
            files = self._folder_builder(folder).config.data_files or {}
            self._check_split(files)
            paths = [Path(file) for file in files[self.split]]
            # The card can choose the files' columns and format.
            card = folder / "README.md"
            return [_file_hash(path) for path in ([card] if card.is_file() else []) + paths]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what the libraries raise on bad data or a lost connection into DataError."""
        try:
            yield
        except (UntrustedFileError, ConfigError) as error:
            raise DataError(f"{self.dataset} cannot be read: {error}; or {OTHER_SOURCES}") from error
        except library_errors() as error:
            # A failed preparation is told in general words; the reason is in its cause.
            reason = error.__cause__ if error.__cause__ is not None else error
            what = "there are no rows" if isinstance(reason, StopIteration) else one_line(reason)
            where = "there" if self._folder is not None else "on the hub or in the connection"
            raise DataError(
                f"{self._broken_file() or self.dataset} cannot be read: {what}; fix it {where}, or {OTHER_SOURCES}"
            ) from error

    def _broken_file(self) -> Path | None:
        """The first file of a local folder's split that cannot be read by itself; the libraries do not name it."""
        import datasets

        if self._folder is None:
            return None
        file = None
        errors: tuple[type[Exception], ...] = (*library_errors(), KeyError, UserError)
        try:
            with quiet():
                builder = self._folder_builder(self._folder)
                for file in builder.config.data_files[self.split]:
                    alone = datasets.load_dataset_builder(builder.name, data_files=[file])
                    for _ in alone.as_streaming_dataset()["train"].iter(READ_ROWS):
                        pass
        except errors:
            return file and Path(self.dataset, Path(file).relative_to(self._folder))
        return None


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
