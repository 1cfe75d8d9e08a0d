"""Documents from a Hugging Face dataset, on the hub at a fixed commit or in a local folder."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from storyteller_ds.config.prompt_template import PromptTemplate
from storyteller_ds.data.cache import cache_folder
from storyteller_ds.data.prompted import document_of
from storyteller_ds.data.sources import hub
from storyteller_ds.data.sources.dataset_card import check_cards, names_files
from storyteller_ds.data.sources.datasets_library import (
    OTHER_SOURCES,
    library_errors,
    one_line,
    quiet,
    require_datasets,
)
from storyteller_ds.data.sources.file_kind import refuse_lfs_pointer
from storyteller_ds.data.sources.listing import NOT_STORIES, list_folder, not_read
from storyteller_ds.data.sources.source import LONGEST, too_long
from storyteller_ds.data.sources.story_ends import MARKER
from storyteller_ds.errors import ConfigError, DataError, UserError
from storyteller_ds.untrusted import UntrustedFileError
from storyteller_ds.user_paths import expand_home

# Part of the fingerprint: raise it whenever the same rows would give different documents.
FORMAT = "storyteller hugging face 1"
READ_ROWS = 1000
# The library has readers for some thirty kinds of files. These hold text and were checked: nothing in them is
# unpickled, and none is an archive, whose members could have any path, or any size once unpacked.
READERS = ("parquet", "arrow", "json", "csv", "text")
DATA_SUFFIXES = (".parquet", ".arrow", ".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_FOLDER_SUFFIXES = (*DATA_SUFFIXES, ".txt")
_OTHER_SEPARATORS = ";\t|"
"""Column separators that the library does not recognize in a .csv."""


@dataclass(frozen=True)
class HuggingFaceSource:
    """One split of a dataset on the hub (`OWNER/NAME`) or in a local folder of the hub's layout.

    The files of a hub dataset are first downloaded into the cache folder, and then need no network; with `streaming`,
    they are read from the hub unless they have been downloaded. A local folder is read in place; it has no revision, so
    one that is meant for another dataset of the run is ignored.

    Raises DataError on construction for a name that is neither a folder nor a hub name, or a revision that is missing
    or not a commit sha.
    """

    dataset: str
    split: str
    revision: str | None = None
    text_field: str = "text"
    prompt: str | None = None
    """data.prompt."""
    streaming: bool = False
    max_documents: int | None = None
    cache_dir: Path | None = None
    """data.cache_dir."""

    def __post_init__(self) -> None:
        if self._folder is None:
            hub.check_name(self.dataset, self.revision)

    @property
    def name(self) -> str:
        """The dataset, its commit if it comes from the hub, and the split."""
        at = "" if self._folder is not None else f"@{self._commit[:8]}"
        return f"{self.dataset}{at} ({self.split})"

    @property
    def fingerprint(self) -> str:
        """The sha256 of the dataset and its settings; for a local folder, of its contents instead of its path.

        Needs no network for a hub dataset, whose commit stands for its contents. Reads all data files of
        the split in a local folder. Raises DataError when the folder has no such split or has data files
        that cannot be read, or when the `datasets` library is not installed.
        """
        if self._folder is None:
            origin = [self.dataset, self._commit]
        else:
            # Without the path: a run moved to another machine continues on the same folder.
            origin = ["local folder", *self._content_hashes(self._folder)]
        asked = [FORMAT, origin, self.split, self.text_field, self.max_documents]
        if self.prompt is not None:
            asked.append(self.prompt)
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """Yield the text of each row, with LF line ends, stripped; rows without text are left out.

        Raises DataError, at the first document, when `datasets` is not installed, the hub cannot be
        reached, or the dataset, split or text field does not exist; also when the data cannot be read or
        holds no document.
        """
        count = 0
        for prompt, text in self._texts():
            document = document_of(prompt, text)
            if len(document) > LONGEST:
                raise too_long(f"a row of {self.name}", "take another dataset, or cut it into stories")
            if MARKER in document:  # as in text files, where the library makes every line a document
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
        """Which data files of a local folder are in none of its splits: the library ignores them silently."""
        folder = self._folder
        if folder is None or names_files(folder):
            return []
        with self._reading():
            files = self._builder().config.data_files or {}
        read = {Path(file).resolve() for split in files.values() for file in split}
        data = [path for path in list_folder(folder).others if path.suffix.lower() in DATA_SUFFIXES]
        unread = [path for path in data if path.resolve() not in read and path.name not in NOT_STORIES]
        return not_read([Path(self.dataset, path.relative_to(folder)) for path in unread], "data files")

    def has_split(self, split: str) -> bool:
        """Whether the dataset has a split; asks the hub, unless the commit is pinned or cached.

        Raises DataError for a local folder that cannot be read. If the hub cannot be asked, the split is assumed to
        exist: then a corpus that was prepared from it is found, and otherwise reading it says what is wrong.
        """
        if self._folder is None and self._commit == hub.PINNED_REVISIONS.get(self.dataset):
            return split in hub.PINNED_SPLITS
        try:
            with self._reading():
                return split in (self._builder().config.data_files or {})
        except DataError:
            if self._folder is not None:
                raise
            return True

    @property
    def _folder(self) -> Path | None:
        path = expand_home(self.dataset)
        return path.resolve() if path.is_dir() else None

    @property
    def _commit(self) -> str:
        return self.revision or hub.PINNED_REVISIONS[self.dataset]

    @property
    def _downloaded(self) -> Path:
        """Where the files of a hub dataset are once all of them have been downloaded."""
        return cache_folder(self.cache_dir) / "hub" / self.dataset / self._commit

    def _texts(self) -> Iterator[tuple[str, str]]:
        """The prompt and the text of each row."""
        batches = self._open().iter(batch_size=READ_ROWS)
        while True:
            # Around each step, not the loop, so that the caller's code between two documents keeps its warnings.
            with self._reading():
                batch = next(batches, None)
            if batch is None:
                return
            for number, text in enumerate(batch[self.text_field]):
                if isinstance(text, str):
                    yield self._prompt({name: values[number] for name, values in batch.items()}), text
                elif text is not None:
                    raise DataError(
                        f"field {self.text_field!r} of {self.name} holds {type(text).__name__}, not "
                        "text; name another with data.text_field"
                    )

    def _open(self) -> Any:
        """Return the rows of the split, with only the fields of the text and the prompt."""
        with self._reading():
            if self._folder is None and not self.streaming and not self._downloaded.exists():
                hub.download(self.dataset, self._commit, self._builder().config.data_files or {}, self._downloaded)
            splits = self._builder().as_streaming_dataset()
            self._check_split(splits)
            rows = splits[self.split]
            # For formats that do not declare their fields, such as JSON Lines, the first row shows them.
            fields = rows.column_names or list(next(iter(rows), {}))
            if len(fields) == 1 and set(fields[0]) & set(_OTHER_SEPARATORS):
                raise DataError(
                    f"{self.name} would be read as one column, named {fields[0]!r}; separate the columns by commas in "
                    ".csv and by tabs in .tsv"
                )
            if self.text_field in self._template.fields:
                raise DataError(f"{self.name}: data.prompt has the story itself, {{{self.text_field}}}; leave it out")
            wanted = list(dict.fromkeys([self.text_field, *self._template.fields]))
            for name, setting in zip(wanted, ["data.text_field", *["data.prompt"] * len(wanted)], strict=False):
                if fields and name not in fields:
                    raise DataError(f"{self.name} has no field {name!r}; set {setting} to one of: {', '.join(fields)}")
            return rows.select_columns(wanted) if fields else rows

    def _prompt(self, row: Mapping[str, Any]) -> str:
        try:
            return self._template.fill(row)
        except KeyError as error:
            raise DataError(
                f"{self.name} has a row with no text in its field {error.args[0]!r}, which data.prompt has; take the "
                "row out, or write data.prompt without it"
            ) from None

    @cached_property
    def _template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt or "")

    def _builder(self) -> Any:
        """The library's choice of a reader and of files, both checked."""
        import datasets

        folder = self._folder
        if folder is not None:
            check_cards(folder, self.dataset)
        elif self._downloaded.exists():
            folder = self._downloaded.resolve()
        if folder is not None:
            builder, home = datasets.load_dataset_builder(str(folder)), str(folder)
        else:
            builder, home = hub.open_dataset(self.dataset, self._commit), hub.address(self.dataset, self._commit)
        self._check_files(builder, home)
        return builder

    def _check_files(self, builder: Any, home: str) -> None:
        """Refuse kinds of files that we do not read, and files outside the dataset, which its card can name.

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
            if home.startswith("hf:"):
                is_outside = not file.startswith(f"{home}/") or ".." in file.split("/")
            else:
                is_outside = not path.resolve().is_relative_to(home) or not path.is_file()
            if self._folder is not None and path.suffix not in _FOLDER_SUFFIXES:
                raise DataError(f"{file} is packed; unpack it, so that it ends in {', '.join(_FOLDER_SUFFIXES)}")
            if is_outside:
                raise DataError(f"{self.dataset} names the file {file}, which is not one of its own; {OTHER_SOURCES}")
            if self._folder is not None:
                refuse_lfs_pointer(path)

    def _check_split(self, available: Iterable[Any]) -> None:
        names = [str(name) for name in available]
        if self.split not in names:
            raise DataError(f"{self.dataset} has no split {self.split!r}; it has: {', '.join(names) or 'none'}")

    def _content_hashes(self, folder: Path) -> list[str]:
        with self._reading():
            # The library's own choice of files, in its order: exactly what documents() reads.
            files = self._builder().config.data_files or {}
            self._check_split(files)
            paths = [Path(file) for file in files[self.split]]
            # The card can set the files' columns and format.
            card = folder / "README.md"
            return [file_hash(path) for path in ([card] if card.is_file() else []) + paths]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Wraps every use of the libraries: keeps them quiet, and turns their errors into DataErrors."""
        require_datasets()
        try:
            with quiet():
                yield
        except (UntrustedFileError, ConfigError) as error:
            raise DataError(f"{self.dataset} cannot be read: {error}; or {OTHER_SOURCES}") from error
        except library_errors() as error:
            # Some have a general message; the reason is in their cause.
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
                builder = self._builder()
                for file in builder.config.data_files[self.split]:
                    alone = datasets.load_dataset_builder(builder.name, data_files=[file])
                    for _ in alone.as_streaming_dataset()["train"].iter(READ_ROWS):
                        pass
        except errors:
            return file and Path(self.dataset, Path(file).relative_to(self._folder))
        return None


def file_hash(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
