"""Datasets on the Hugging Face hub: which commit, whether it can be reached, and downloading it into the cache."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from storyteller_ds.data.in_time import in_time
from storyteller_ds.data.sources.dataset_card import CARDS
from storyteller_ds.data.sources.datasets_library import OTHER_SOURCES, library_errors, one_line
from storyteller_ds.data.work_folder import put_in_place, work_folder
from storyteller_ds.errors import DataError

PINNED_REVISIONS = {
    "roneneldan/TinyStories": "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
    "euclaise/writingprompts": "35f0aa359452ba8147b34d925684fccee26679cc",
}
PINNED_SPLITS = ("train", "validation")
"""Splits of each of them at its commit."""

PROBE_TIMEOUT_SECONDS = 4.0
"""The hub must answer one small request within this time before anything is downloaded."""

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_name(dataset: str, revision: str | None) -> None:
    """Raises DataError if the name cannot be one on the hub, or its revision is missing or not a commit."""
    if not _NAME.fullmatch(dataset):
        raise DataError(f"{dataset} is neither a folder here nor a hub name of the form OWNER/NAME; check data.source")
    if revision is None and dataset not in PINNED_REVISIONS:
        raise DataError(
            f"{dataset} is not a folder here, and as a hub dataset it has no fixed revision, so its "
            f"data could change under a run; add data.revision=<commit sha>, from {_page(dataset)}/commits/main"
        )
    if revision is not None and not _COMMIT.fullmatch(revision):
        raise DataError(
            f"revision {revision!r} of {dataset} can move to other data; "
            "give data.revision=<commit sha>, all 40 lower-case hex digits of it"
        )


def address(dataset: str, commit: str) -> str:
    """The common prefix of the addresses of all files of a commit."""
    return f"hf://datasets/{dataset}@{commit}"


def open_dataset(dataset: str, commit: str) -> Any:
    """The library's reader of the commit, with its choice of files.

    Raises:
        DataError: there is no such dataset or commit, or the hub cannot be reached.
    """
    import datasets

    _probe(dataset, commit)
    builder = datasets.load_dataset_builder(dataset, revision=commit)
    # When the hub fails halfway, the library falls back to the newest commit in its cache.
    if builder.hash != commit:
        _unreachable(dataset, "the connection was lost")
    return builder


def download(dataset: str, commit: str, files: Mapping[Any, Iterable[Any]], folder: Path) -> None:
    """Download files and the card to a folder, which exists only once complete; an interrupted download is continued.

    Args:
        dataset: name of the dataset.
        commit: commit of the dataset.
        files: addresses of the files, by split.
        folder: where they go.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    names = [str(file).removeprefix(f"{address(dataset, commit)}/") for split in files.values() for file in split]
    names += [card for card in CARDS if api.file_exists(dataset, card, repo_type="dataset", revision=commit)]
    with work_folder(folder) as work:
        for name in names:
            api.hf_hub_download(dataset, name, repo_type="dataset", revision=commit, local_dir=work)
        if not folder.exists():  # another process may have been faster
            put_in_place(work, folder)


def _probe(dataset: str, commit: str) -> None:
    """Ask the hub for the commit, so that a dead network is an error within seconds, not minutes."""
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if config.HF_HUB_OFFLINE:
        _unreachable(dataset, "offline mode is set (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)")
    try:
        # Looking up the hub's name has no time limit of its own.
        in_time(
            lambda: HfApi().dataset_info(dataset, revision=commit, timeout=PROBE_TIMEOUT_SECONDS),
            2 * PROBE_TIMEOUT_SECONDS,
        )
    except RevisionNotFoundError as error:
        raise DataError(
            f"{dataset} has no commit {commit}; take data.revision from {_page(dataset)}/commits/main"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{dataset} does not exist on the hub, or is private or gated; check data.source, or ask for access on "
            f"{_page(dataset)} and run `hf auth login`"
        ) from error
    except library_errors() as error:
        _unreachable(dataset, one_line(error), error)


def _page(dataset: str) -> str:
    return f"https://huggingface.co/datasets/{dataset}"


def _unreachable(dataset: str, why: str, cause: BaseException | None = None) -> NoReturn:
    from datasets import config

    raise DataError(
        f"the Hugging Face hub at {config.HF_ENDPOINT} cannot be reached for {dataset} ({why}), "
        f"and this commit is not cached; check the network, or {OTHER_SOURCES}"
    ) from cause
