"""What a setting means, what it takes and where it is set: read from the config models themselves."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from storyteller_ds.config.deepspeed import JSON_KEYS
from storyteller_ds.config.files import preset_names, read_preset
from storyteller_ds.config.load import flatten, suggest
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import ConfigError

_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
_BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


@dataclass(frozen=True)
class Setting:
    """One field of the run config."""

    name: str
    """Dotted, as on the command line."""
    meaning: str
    """With its unit."""
    takes: str
    """Type and bounds."""
    default: Any
    json_key: str | None
    """The key of a DeepSpeed JSON that can set it, too."""

    def in_presets(self) -> dict[str, list[str]]:
        """Values that presets give it, each with the presets' names."""
        values: dict[str, list[str]] = {}
        for preset in preset_names():
            given = flatten(read_preset(preset))
            if self.name in given:
                values.setdefault(str(given[self.name]), []).append(preset)
        return values


def sections() -> dict[str, str]:
    """Name -> meaning of every section, and of the settings that are in none."""
    return {name: _meaning(field) for name, field in RunConfig.model_fields.items()}


def settings(name: str) -> list[Setting]:
    """The setting of that name, or all of a section.

    Raises:
        ConfigError: there is neither; the message names the nearest.
    """
    found = [each for each in _all() if each.name == name or each.name.startswith(f"{name}.")]
    if not found:
        raise ConfigError(f"there is no setting '{name}'{suggest(tuple(name.split('.')))}")
    return found


def _all(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _all(inner, f"{prefix}{name}.")
        else:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            dotted = prefix + name
            yield Setting(dotted, _meaning(field), _takes(field), default, JSON_KEYS.get(dotted))


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _takes(field: FieldInfo) -> str:
    """For a person: `a whole number, at least 1, or null`."""
    named = ((each, *_BOUNDS[type(each)]) for each in field.metadata)
    bounds = "".join(f", {words} {getattr(each, name)}" for each, name, words in named)
    *most, last = [_type(each, bounds) for each in _members(field.annotation)]
    return f"{', '.join(most)}{',' if bounds else ''} or {last}" if most else last


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union and the values of a Literal, one by one."""
    if get_origin(annotation) in (None, tuple):
        return (annotation,)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(member for each in get_args(annotation) for member in _members(each))


def _type(member: Any, bounds: str) -> str:
    if member is type(None):
        return "null"
    if get_origin(member) is tuple:
        return "a list of texts" if get_args(member)[0] is str else "a list"
    return _TYPES[member] + bounds if isinstance(member, type) else str(member)
