"""Helpers for calls of the Hugging Face libraries: which errors they raise, and how to silence them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from storyteller_ds.errors import DataError

OTHER_SOURCES = "use data.source=builtin or data.source=PATH/TO/stories.txt instead"


def require_datasets() -> None:
    """Raises DataError if the `datasets` library is not installed."""
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise DataError(f"Hugging Face datasets need a package: pip install datasets; or {OTHER_SOURCES}") from error


def library_errors() -> tuple[type[Exception], ...]:
    """The exceptions that the libraries raise for bad data and a lost connection."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # Raised for a broken dataset card; imported by name, since PyYAML's type stubs are not among our packages.
    yaml_error: type[Exception] = import_module("yaml").YAMLError
    # The libraries and Arrow raise ValueError and RuntimeError for bad files, and for an answer that is not
    # JSON, such as a login page instead of the hub's. The bases of the hub's error include the HTTP client's
    # own, which differs between major versions of huggingface_hub. The JSON reader raises StopIteration if
    # there are no rows.
    errors: list[type[Exception]] = [OSError, ValueError, RuntimeError, StopIteration, yaml_error, DatasetsError]
    return (*errors, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the libraries' progress bars and warnings: what matters becomes a DataError."""
    import datasets.utils
    import huggingface_hub.utils

    # Bars stay off if the user has turned them off.
    loud = [each for each in (datasets.utils, huggingface_hub.utils) if not each.are_progress_bars_disabled()]
    levels = {logger: logger.level for logger in map(logging.getLogger, ("datasets", "huggingface_hub"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loud:
            each.disable_progress_bars()
        for logger in levels:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for each in loud:
                each.enable_progress_bars()
            for logger, level in levels.items():
                logger.setLevel(level)


def one_line(error: BaseException) -> str:
    """The message of an error, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
