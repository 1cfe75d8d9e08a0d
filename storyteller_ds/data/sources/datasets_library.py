"""What calls of the Hugging Face libraries need around them: their errors by name, and silence."""

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
    """What the libraries raise on bad data and on a lost connection."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # A broken dataset card. By name, since the type stubs of PyYAML are not among our packages.
    yaml_error: type[Exception] = import_module("yaml").YAMLError
    # ValueError and RuntimeError are what the libraries and Arrow raise on bad files, and on an answer
    # that is not JSON, such as a login page in the hub's place. The bases of the hub's error name the
    # HTTP client's own, which is another with each major version of huggingface_hub. StopIteration is what
    # the reader of JSON raises where there is no row.
    errors: list[type[Exception]] = [OSError, ValueError, RuntimeError, StopIteration, yaml_error, DatasetsError]
    return (*errors, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' bars and warnings off the screen: what matters of them becomes a DataError."""
    import datasets.utils
    import huggingface_hub.utils

    # Bars stay off where the user has put them off.
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
    """Its message, in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
