"""Values of secret environment variables: kept out of everything that is written, shown or sent.

Of the environment, a run records nothing. A secret could still be typed into a config or a command line, or come
back in the words of a library; both are met here.
"""

import os
import re
from collections.abc import Mapping

SHORTEST_SECRET = 8
"""Values below this length (characters) are no secrets, and would be found in any text."""
_SECRET_NAME = re.compile(r"TOKEN(?!IZER)|KEY(?!BOARD)|SECRET|PASSW|PASSPHRASE|CREDENTIAL", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(\w://)[^\s/@]+@")


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name is taken to hold a secret, as WANDB_API_KEY and HF_TOKEN do."""
    return bool(_SECRET_NAME.search(name))


def secret_in(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Name of a secret variable whose value is in the text, or None."""
    return next((name for name, value in _secrets(environment) if value in text), None)


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with each secret value replaced by its variable's name, and user names and passwords cut out of URLs."""
    for name, value in _secrets(environment):
        text = text.replace(value, f"[{name}]")
    return _USER_IN_URL.sub(r"\1", text)


def _secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and values, the longest first: one may be part of another. A path or a flag is not a secret."""
    found = [
        (name, value)
        for name, value in environment.items()
        if is_secret_name(name) and len(value) >= SHORTEST_SECRET and not value.startswith(("/", "~", "./"))
    ]
    return sorted(found, key=lambda pair: -len(pair[1]))
