"""From data.source and data.validation to the sources that they name."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.sources.builtin import BuiltinSource
from storyteller_ds.data.sources.dataset_card import names_files
from storyteller_ds.data.sources.file_kind import table_of
from storyteller_ds.data.sources.files import FilesSource, is_pattern, matching_files
from storyteller_ds.data.sources.held_out import HeldOutPart
from storyteller_ds.data.sources.huggingface import DATA_SUFFIXES, HuggingFaceSource
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.sources.table_file import TableFileSource
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.data.sources.text_folder import TEXT_SUFFIXES, TextFolderSource, list_folder
from storyteller_ds.data.sources.utf8_stream import PACKED_SUFFIXES
from storyteller_ds.errors import DataError
from storyteller_ds.user_paths import expand_home

BUILTIN_VALIDATION_PART = 20
"""One built-in validation story for so many training stories."""
_OF_A_FILE = (*TEXT_SUFFIXES, *DATA_SUFFIXES, *PACKED_SUFFIXES, ".zip", ".pdf", ".html", ".epub", ".yaml")
"""What ends with one of these is a file that does not exist, and not the name of a dataset."""
_FILES = (FilesSource, TableFileSource, TextFileSource)
_OF_KINDS = {
    "encoding": ("text files and tables", (*_FILES, TextFolderSource)),
    "split": ("text files", (FilesSource, TextFileSource, TextFolderSource)),
    "bad_rows": ("tables in files", (FilesSource, TableFileSource)),
    "text_field": ("Hugging Face datasets and tables", (FilesSource, HuggingFaceSource, TableFileSource)),
    "revision": ("Hugging Face datasets", (HuggingFaceSource,)),
    "streaming": ("Hugging Face datasets", (HuggingFaceSource,)),
    "max_documents": ("Hugging Face datasets", (HuggingFaceSource,)),
}
"""Settings of some kinds of sources alone."""


class Sources(NamedTuple):
    """What to train on, and what to validate on."""

    train: Source
    validation: Source

    def remarks(self) -> list[str]:
        """Notes about how they are read, a line each.

        Raises DataError when one of them cannot be read, or cannot be what it is wanted for.
        """
        remarks = dict.fromkeys([*self.train.remarks(), *self.validation.remarks()])
        if self.train.fingerprint == self.validation.fingerprint:
            remarks[f"validation is on the very text that is trained on, {self.train.name}"] = None
        return list(remarks)


def choose_sources(data: DataConfig) -> Sources:
    """The sources of a run.

    Raises:
        DataError: one of them cannot exist, or a setting has no source that it applies to.
    """
    train = _open(data, data.source, "train")
    validation = None if data.validation is None else _open(data, data.validation, "validation")
    for field, (what, kinds) in _OF_KINDS.items():
        value = getattr(data, field)
        # Of a validation split all documents are used.
        users = [train] if field == "max_documents" else [train, validation]
        if value != DataConfig.model_fields[field].default and not any(isinstance(x, kinds) for x in users):
            raise DataError(f"data.{field}={value} is for {what}, and none is read with it; remove it")
    if validation is not None:
        # A dataset that is named for validation needs no split of that name, unless it is trained on.
        if isinstance(validation, HuggingFaceSource) and not validation.has_split("validation"):
            if expand_home(validation.dataset).resolve() == expand_home(data.source).resolve():
                raise DataError(
                    f"{data.validation} has no validation split; leave data.validation out, and a part is held out"
                )
            validation = replace(validation, split="train")
        return Sources(train, validation)
    if isinstance(train, BuiltinSource) or (not isinstance(train, _FILES) and train.has_split("validation")):
        return Sources(train, _open(data, data.source, "validation"))
    fraction = data.validation_fraction
    return Sources(HeldOutPart(train, fraction, "kept"), HeldOutPart(train, fraction, "held_out"))


def whole_source(data: DataConfig) -> Source:
    """All that a run would train and validate on, where data.source has no validation split of its own.

    Raises:
        DataError: it cannot exist.
    """
    return _open(data, data.source, "train")


_AnySource = BuiltinSource | FilesSource | HuggingFaceSource | TableFileSource | TextFileSource | TextFolderSource


def _open(data: DataConfig, name: str, split: Literal["train", "validation"]) -> _AnySource:
    if name == "builtin":
        train = data.builtin_stories
        return BuiltinSource(split, train if split == "train" else -(-train // BUILTIN_VALIDATION_PART))
    path = expand_home(name)
    if path.is_dir():
        if _is_of_texts(path):
            return TextFolderSource(path, split, data.encoding, data.split)
    elif path.exists() or name.startswith((".", "/", "~")) or path.suffix.lower() in _OF_A_FILE:
        if is_pattern(path):
            return FilesSource(name, tuple(_open_file(data, file) for file in matching_files(path)))
        return _open_file(data, path)
    return HuggingFaceSource(
        dataset=name,
        split=split,
        revision=data.revision,
        text_field=data.text_field,
        streaming=data.streaming,
        max_documents=data.max_documents if split == "train" else None,
        cache_dir=data.cache_dir,
    )


def _open_file(data: DataConfig, path: Path) -> TableFileSource | TextFileSource:
    kind = table_of(path, data.encoding)
    if kind is not None:
        return TableFileSource(path, kind, data.text_field, data.encoding, data.bad_rows)
    return TextFileSource(path, data.encoding, data.split)


def _is_of_texts(folder: Path) -> bool:
    """Whether a folder is to be read as text files, and not as a dataset in the hub's layout.

    Raises:
        DataError: both would leave out a part of it.
    """
    listing = list_folder(folder)
    if names_files(folder):
        return False
    texts = listing.texts
    if any(path.suffix.lower() in DATA_SUFFIXES for path in listing.others):
        texts = [path for path in texts if path.suffix.lower() != ".md"]  # about the data
    if texts and listing.others:
        raise DataError(
            f"{folder} holds text ({texts[0].relative_to(folder)}) and something else "
            f"({listing.others[0].relative_to(folder)}); put the one or the other into a folder of its own"
        )
    return not listing.others
