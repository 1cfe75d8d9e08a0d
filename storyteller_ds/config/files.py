"""Reading YAML and JSON so that nothing in a file is lost silently."""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node

from storyteller_ds import untrusted
from storyteller_ds.config.base import WrittenFloat, WrittenInt
from storyteller_ds.config.nearest import did_you_mean, nearest
from storyteller_ds.errors import ConfigError
from storyteller_ds.untrusted import UntrustedFileError

FILE_BYTES = 1 << 18
"""Largest config, DeepSpeed JSON or hostfile that is read (bytes)."""
YAML_DEPTH = 32
"""Deepest nesting of a YAML text; a run config has two levels and lists in them."""
INTEGER_CHARACTERS = 40
"""Longest integer in a YAML text (characters); one of 64 bits has 20."""
_INTEGER, _FLOAT, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 with the safe loader; a key given twice is refused, and so is an alias, which could multiply.

    Raises:
        ConfigError: the text is not YAML; the message names `where` and the line.
    """
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.max_depth = YAML_DEPTH
        yaml.Composer, yaml.Constructor = _NoAliases, _AsTyped
        return yaml.load(text)
    except (YAMLError, ValueError, LookupError, ArithmeticError, AssertionError, RecursionError) as error:
        # Others than YAMLError are what the library lets out on numbers, escapes and tags that cannot be, and on
        # nesting without end.
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem, *_ = str(getattr(error, "problem", None) or error).splitlines() or [type(error).__name__]
        raise ConfigError(f"{where}{line}: not valid YAML ({problem}); fix the YAML there") from error


class _NoAliases(Composer):
    def return_alias(self, node: Node) -> Node:
        raise ValueError(f"it repeats line {node.start_mark.line + 1} by an alias; write the value out")


class _AsTyped(SafeConstructor):
    """Numbers remember how they were typed, in case they are meant as a name.

    Raises:
        ValueError: a number is too long.
    """

    def construct_number(self, node: Node) -> int | float:
        if node.tag == _INTEGER and len(node.value) > INTEGER_CHARACTERS:
            raise ValueError(f"a number of {len(node.value)} digits in line {node.start_mark.line + 1}")
        number = self.construct_yaml_int(node) if node.tag == _INTEGER else self.construct_yaml_float(node)
        written = WrittenInt(number) if isinstance(number, int) else WrittenFloat(number)
        written.typed = node.value
        return written

    def construct_date(self, node: Node) -> str:
        """No setting is a date, but a name may look like one."""
        return str(node.value)


for _tag in (_INTEGER, _FLOAT):
    _AsTyped.add_constructor(_tag, _AsTyped.construct_number)
_AsTyped.add_constructor(_DATE, _AsTyped.construct_date)


def nearest_sibling(missing: Path) -> str:
    """`; did you mean 'x'?` for a file of nearly that name in the same folder, or nothing."""
    near = nearest(missing.name, (path.name for path in missing.parent.glob("*") if path.suffix == missing.suffix))
    return f"; did you mean '{near}'?" if near else ""


def read_text(path: Path, what: str, hint: Callable[[Path], str] = nearest_sibling) -> str:
    """The content of a small UTF-8 file.

    Args:
        path: of the file.
        what: it is, for the message.
        hint: what to add to the message where there is no such file.

    Raises:
        ConfigError: it is missing, unreadable, too large, no regular file, or not UTF-8.
    """
    try:
        return untrusted.read_text(path, FILE_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"{what} {path} does not exist{hint(path) or '; check the path'}") from None
    except UntrustedFileError as error:
        raise ConfigError(f"{what} {error}; give a UTF-8 text file") from None
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}; check the path") from None


def preset_names() -> list[str]:
    """Names of the presets in the package, sorted."""
    return sorted(p.name[:-5] for p in files("storyteller_ds.presets").iterdir() if p.name.endswith(".yaml"))


class PresetSummary(NamedTuple):
    """What a preset is, from its first two lines; tests/unit/model/test_presets.py checks the numbers."""

    purpose: str
    parameters: int
    active: int
    """Parameters that one token meets."""


def preset_summary(name: str) -> PresetSummary:
    """Of a preset in the package."""
    purpose, counts, *_ = preset_text(name).splitlines()
    parameters, active = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", counts))
    return PresetSummary(purpose.removeprefix("# "), parameters, active)


def read_preset(name: str) -> dict[str, Any]:
    """The content of a preset.

    Raises:
        ConfigError: there is none of that name; the message names the nearest.
    """
    if name not in preset_names():
        raise ConfigError(f"no preset is called '{name}'{did_you_mean(name, preset_names())}")
    return as_mapping(parse_yaml(preset_text(name), f"preset {name}"), f"preset {name}")


def preset_text(name: str) -> str:
    """A preset as it is written, with its comments."""
    return files("storyteller_ds.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def read_json(path: Path, what: str, hint: Callable[[Path], str] = nearest_sibling) -> dict[str, Any]:
    """A JSON object from a file; a key given twice is refused. For the arguments see read_text.

    Raises:
        ConfigError: it is missing, not JSON, or not an object.
    """
    text = read_text(path, what, hint)
    try:
        value = untrusted.parse_json(text, str(path))
    except UntrustedFileError as error:
        raise ConfigError(f"{what} {error}; fix the JSON there") from None
    return as_mapping(value, f"{what} {path}")


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """`value` if it is a mapping with string keys, {} for an empty file.

    Raises:
        ConfigError: it is anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected `section:` blocks of `field: value`, found {value!r:.40}")
    return value
