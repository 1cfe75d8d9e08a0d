"""The text before each story of a run that learns to continue prompts."""

from collections.abc import Mapping
from string import Formatter
from typing import Any


class PromptTemplate:
    """A text with fields in braces, such as `Genre: {genre}\\n`; `{{` and `}}` are braces.

    Args:
        text: of the template.

    Raises:
        ValueError: a field has no name, or something else than its name in the braces.
    """

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        for before, name, form, conversion in Formatter().parse(text):
            if name is not None and (form or conversion or not name.strip()):
                raise ValueError("braces hold the name of a field alone, as in {genre}; write {{ for a brace")
            self._parts.append((before, name))

    @property
    def fields(self) -> list[str]:
        """Their names."""
        return [name for _, name in self._parts if name is not None]

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text with the fields of a row.

        Raises:
            KeyError: the row has no text in one of them.
        """
        filled: list[str] = []
        for before, name in self._parts:
            filled.append(before)
            if name is not None:
                value = row.get(name)
                if not isinstance(value, str | int | float):
                    raise KeyError(name)
                filled.append(str(value).strip())
        return "".join(filled)
