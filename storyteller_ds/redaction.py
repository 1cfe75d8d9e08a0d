"""Values of secret environment variables: kept out of everything that is written, shown or sent.

A run records nothing of the environment. A secret could still be typed into a config or a command line, or come back
in a library's message; both cases are caught here, by value.

A variable with KEY or TOKEN in its name need not hold a secret: GPG_KEY is public, RUN_KEY=gpt2-small is a name.
So a value counts as a secret if its variable is known to hold a key, or if it looks random, as no word or name does.
"""

import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

KNOWN = (
    *("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"),
    "STORYTELLER_JUDGE_KEY",
)
"""Variables of the services that a run talks to: their values are always secrets."""
SHORTEST_SECRET = 8
"""Shorter values (characters) are not treated as secrets: they would be found in any text."""
WHAT_TO_DO_ABOUT_IT = (
    "that looks like a secret and would be recorded with the run: leave it out, or if it is none run without {name} "
    "(env -u {name} storyteller ...)"
)
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZER)|(?<!MON|DON|TUR|HOT)KEYS?(?![A-Z])|SECRET|PASSW|PASSPHRASE|CREDENTIAL", re.IGNORECASE
)
_RUN = re.compile(r"[A-Za-z0-9]+")
_SYMBOL = re.compile(r"[^\w\s./:,@-]")
"""Characters that occur in passwords but not in names, numbers, paths and addresses."""
_USER_IN_URL = re.compile(r"(\w://)[^\s/@]+@")


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name is taken to hold a secret, as WANDB_API_KEY and HF_TOKEN do."""
    return bool(_SECRET_NAME.search(name))


def looks_random(value: str) -> bool:
    """Whether a text is more likely a key than a word or a name.

    It has 24 letters and digits in a row, or 12 with both letters and digits, or 8 (32, whatever is between them) with
    capital letters, lowercase letters and digits; or it is 8 long with a letter, a digit and a symbol that no name has.
    A key that has none of these, such as a password of lowercase letters, cannot be distinguished from a word.
    """
    if any(_is_random_run(run) for run in _RUN.findall(value)):
        return True
    if not _mixes(value):
        return False
    if len(value) >= 32 and _has_both_cases(value):
        return True
    return len(value) >= SHORTEST_SECRET and bool(_SYMBOL.search(value))


def secret_in(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Name of a secret variable whose value is in the text, or None."""
    return next((name for name, value in _secrets(environment) if value in text), None)


def secret_within(value: Any, environment: Mapping[str, str] = os.environ) -> str | None:
    """Name of a secret variable whose value is in one of the texts of nested mappings and lists, keys included.

    Each text is searched by itself, because JSON and repr write quotes and backslashes differently.
    """
    return next((name for text in _texts(value) if (name := secret_in(text, environment))), None)


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with secret values replaced by their variables' names, and user names and passwords cut out of URLs."""
    for name, value in _secrets(environment):
        text = text.replace(value, f"[{name}]")
    return _USER_IN_URL.sub(r"\1", text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
    else:
        yield str(getattr(value, "typed", value))  # for a number that may be meant as a name, the text as typed


def _is_random_run(run: str) -> bool:
    if not _mixes(run):
        return len(run) >= 24
    return len(run) >= 12 or (len(run) >= SHORTEST_SECRET and _has_both_cases(run))


def _has_both_cases(text: str) -> bool:
    return text.lower() != text != text.upper()


def _mixes(text: str) -> bool:
    """Whether the text has both letters and digits."""
    return any(map(str.isalpha, text)) and any(map(str.isdigit, text))


def _is_path(value: str) -> bool:
    """Whether the value is a path on this machine; base64 may begin with a slash, too."""
    return value.startswith(("~", "./")) or (
        value.startswith("/") and os.path.exists("/" + value.split("/")[1])  # noqa: PTH110  # Path's raises on long names
    )


def _secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and values, the longest first: one may be part of another. A path or a flag is not a secret."""
    found = [
        (name, value)
        for name, value in environment.items()
        if is_secret_name(name) and len(value) >= SHORTEST_SECRET and not _is_path(value)
        if name in KNOWN or looks_random(value)
    ]
    return sorted(found, key=lambda pair: -len(pair[1]))


def one_line(error: Exception) -> str:
    """A library's error as a log line: short, and without secrets."""
    return textwrap.shorten(redacted(f"{type(error).__name__}: {error}"), 200)
