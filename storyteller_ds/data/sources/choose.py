"""From data.source and data.validation to the sources that they name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.sources.builtin import BuiltinSource
from storyteller_ds.data.sources.dataset_card import names_files
from storyteller_ds.data.sources.files import FilesSource
from storyteller_ds.data.sources.held_out import HeldOutPart, PartOfEach
from storyteller_ds.data.sources.huggingface import DATA_SUFFIXES, HuggingFaceSource
from storyteller_ds.data.sources.listing import TEXT_SUFFIXES, is_pattern, list_folder, matching_files, suffix_of
from storyteller_ds.data.sources.mixture import Mixture
from storyteller_ds.data.sources.reading import Reading, open_file
from storyteller_ds.data.sources.source import Source
from storyteller_ds.data.sources.table_file import TableFileSource
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.data.sources.text_folder import TextFolderSource
from storyteller_ds.data.sources.utf8_stream import PACKED_SUFFIXES
from storyteller_ds.errors import DataError
from storyteller_ds.user_paths import expand_home

BUILTIN_VALIDATION_PART = 20
"""Built-in training stories per validation story."""
_OF_A_FILE = (*TEXT_SUFFIXES, *DATA_SUFFIXES, *PACKED_SUFFIXES, ".zip", ".pdf", ".html", ".epub", ".yaml")
"""A missing path that ends in one of these is taken for a file, not for the name of a dataset."""
_FILES = (FilesSource, TableFileSource, TextFileSource)
_OF_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "encoding": ("text files and tables", (TableFileSource, TextFileSource)),
    "split": ("text files", (TextFileSource,)),
    "bad_rows": ("tables in files", (TableFileSource,)),
    "text_field": ("Hugging Face datasets and tables", (HuggingFaceSource, TableFileSource)),
    "prompt": ("Hugging Face datasets and tables", (HuggingFaceSource, TableFileSource)),
    "revision": ("Hugging Face datasets", (HuggingFaceSource,)),
    "streaming": ("Hugging Face datasets", (HuggingFaceSource,)),
    "max_documents": ("Hugging Face datasets and folders", (HuggingFaceSource, TextFolderSource)),
}
"""Settings that apply only to some kinds of sources."""


class Sources(NamedTuple):
    """What to train on, and what to validate on."""

    train: Source
    validation: Source

    def remarks(self) -> list[str]:
        """Notes about how they are read, one line each.

        Raises DataError when one of them cannot be read, or cannot be used for its purpose.
        """
        remarks = dict.fromkeys([*self.train.remarks(), *self.validation.remarks()])
        for trained in (part for part, _ in self.train.parts) if isinstance(self.train, Mixture) else (self.train,):
            if trained.fingerprint == self.validation.fingerprint:
                remarks[f"validation is on the very text that is trained on, {trained.name}"] = None
        return list(remarks)


def choose_sources(data: DataConfig) -> Sources:
    """The sources of a run.

    Raises:
        DataError: one of them cannot exist, one is named twice, or a setting applies to none of them.
    """
    _check_names(data)
    validation = None if data.validation is None else _open(data, data.validation, "validation")
    opened = [_open(data, part.source, "train") for part in data.parts]
    _check_settings(data, opened, validation)
    chosen = [_of_part(data, part.source, train, validation) for part, train in zip(data.parts, opened, strict=True)]
    weights = [part.weight for part in data.parts]
    train = _mixed([each.train for each in chosen], weights)
    if validation is not None:
        return Sources(train, chosen[0].validation)
    # Each held-out story counts once, so that two mixtures of the same sources can be compared.
    return Sources(train, _mixed([each.validation for each in chosen], [1.0] * len(chosen)))


def whole_source(data: DataConfig) -> Source:
    """Everything that a run would train and validate on if data.source has no validation split of its own.

    Raises:
        DataError: it cannot exist.
    """
    _check_names(data)
    return _mixed([_open(data, part.source, "train") for part in data.parts], [part.weight for part in data.parts])


def _mixed(sources: Sequence[Source], weights: Sequence[float]) -> Source:
    """Several sources as one; a single one with weight 1 stays itself, so a list of one name equals that name."""
    return sources[0] if list(weights) == [1.0] else Mixture(tuple(zip(sources, weights, strict=True)))


def _check_names(data: DataConfig) -> None:
    """Raises DataError if a source is named twice."""
    seen: set[str | Path] = set()
    for part in data.parts:
        path = expand_home(part.source)
        name = path.resolve() if path.exists() and part.source != "builtin" else part.source
        if name in seen:
            raise DataError(
                f"data.source names {part.source} twice; name it once, with a weight: "
                f"{{source: {part.source}, weight: 2}}"
            )
        seen.add(name)


def _check_settings(data: DataConfig, train: Sequence[Source], validation: Source | None) -> None:
    """Raises DataError for a setting that applies to none of the sources."""
    for field, (what, kinds) in _OF_KINDS.items():
        value = getattr(data, field)
        if value == DataConfig.model_fields[field].default:
            continue
        # All documents of a validation split are used.
        sources = [*train] if validation is None or field == "max_documents" else [*train, validation]
        readers = [reader for source in sources for reader in (source, *getattr(source, "files", ()))]
        if not any(isinstance(reader, kinds) for reader in readers):
            raise DataError(f"data.{field}={value} is for {what}, and none is read with it; remove it")


def _of_part(data: DataConfig, name: str, train: "_AnySource", validation: "_AnySource | None") -> Sources:
    """The training text of one source, and its own validation text unless one is given."""
    if validation is not None:
        # A dataset given in data.validation needs no split of that name, unless it is also trained on.
        if isinstance(validation, HuggingFaceSource) and not validation.has_split("validation"):
            if expand_home(validation.dataset).resolve() == expand_home(name).resolve():
                raise DataError(
                    f"{data.validation} has no validation split; leave data.validation out, and a part is held out"
                )
            validation = replace(validation, split="train")
        return Sources(train, validation)
    if isinstance(train, BuiltinSource) or (not isinstance(train, _FILES) and train.has_split("validation")):
        return Sources(train, _open(data, name, "validation"))
    fraction = data.validation_fraction
    if data.split == "none" and isinstance(train, FilesSource | TextFolderSource):
        if data.max_documents is not None:
            raise DataError("data.split=none makes each file one document; leave data.max_documents out")
        return Sources(PartOfEach(train, fraction, "kept"), PartOfEach(train, fraction, "held_out"))
    return Sources(HeldOutPart(train, fraction, "kept"), HeldOutPart(train, fraction, "held_out"))


def is_on_hub(name: str) -> bool:
    """Whether a source is a dataset of the hub, because no file or folder here has its name."""
    path = expand_home(name)
    is_file = name.startswith((".", "/", "~")) or suffix_of(path) in _OF_A_FILE or is_pattern(path)
    return name != "builtin" and not path.exists() and not is_file


_AnySource = BuiltinSource | FilesSource | HuggingFaceSource | TableFileSource | TextFileSource | TextFolderSource


def _open(data: DataConfig, name: str, split: Literal["train", "validation"]) -> _AnySource:
    if name == "builtin":
        train = data.builtin_stories
        return BuiltinSource(split, train if split == "train" else -(-train // BUILTIN_VALIDATION_PART))
    path, reading = expand_home(name), Reading.of(data)
    max_documents = data.max_documents if split == "train" else None
    if path.is_dir():
        if _is_read_file_by_file(path):
            return TextFolderSource(path, split, reading, max_documents)
    elif not is_on_hub(name):
        if is_pattern(path):
            return FilesSource(name, tuple(open_file(file, reading) for file in matching_files(path)))
        return open_file(path, reading)
    return HuggingFaceSource(
        dataset=name,
        split=split,
        revision=data.revision,
        text_field=data.text_field,
        prompt=data.prompt,
        streaming=data.streaming,
        max_documents=max_documents,
        cache_dir=data.cache_dir,
    )


def _is_read_file_by_file(folder: Path) -> bool:
    """Whether to read a folder file by file, and not as a dataset in the hub's layout.

    Raises:
        DataError: something in it would be left out, and it is not clear whether that is intended.
    """
    listing = list_folder(folder)
    if names_files(folder):
        return False
    others = [path for path in listing.others if path not in listing.tables]
    has_data = any(suffix_of(path) in DATA_SUFFIXES for path in listing.others)
    texts = [path for path in listing.texts if not (has_data and suffix_of(path) == ".md")]  # .md is about the data
    if texts and others:
        raise DataError(
            f"{folder} holds text ({texts[0].relative_to(folder)}) and something else "
            f"({others[0].relative_to(folder)}); put the one or the other into a folder of its own"
        )
    if any(suffix_of(path) == ".arrow" for path in others):
        return False
    return bool(texts or listing.tables) or not others
