"""Reading YAML and JSON so that nothing in a file is lost silently."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.errors import ConfigError


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 with the safe loader; a key given twice is refused.

    Raises:
        ConfigError: the text is not YAML; the message names `where` and the line.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        problem = (error.problem or "not valid YAML").split("\n")[0]
        raise ConfigError(f"{where}{line}: {problem}; mend the YAML there") from error
    except (ValueError, RecursionError) as error:
        # Dates and numbers that cannot be, and nesting without end.
        raise ConfigError(f"{where}: a value in it cannot be read ({error}); mend the YAML there") from None
    except YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({str(error).splitlines()[0]}); mend the file") from error


def read_text(path: Path, what: str) -> str:
    """The content of a small UTF-8 file.

    Raises:
        ConfigError: it is missing, unreadable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*") if p.suffix == path.suffix]
        hint = did_you_mean(path.name, siblings) if siblings else ""
        raise ConfigError(f"{what} {path} does not exist{hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}; check the path") from None


def preset_names() -> list[str]:
    """Names of the presets in the package, sorted."""
    return sorted(p.name[:-5] for p in files("storyteller_ds.presets").iterdir() if p.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """The content of a preset.

    Raises:
        ConfigError: there is none of that name; the message names the nearest.
    """
    if name not in preset_names():
        raise ConfigError(f"no preset is called '{name}'{did_you_mean(name, preset_names())}")
    text = files("storyteller_ds.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return as_mapping(parse_yaml(text, f"preset {name}"), f"preset {name}")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file; a key given twice is refused.

    Raises:
        ConfigError: it is missing, not JSON, or not an object.
    """
    text = read_text(path, what)
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{what} {path} line {error.lineno} column {error.colno}: {error.msg}; mend the JSON there"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} {path}: a value in it cannot be read ({error}); mend the JSON there") from None
    except KeyError as error:
        raise ConfigError(f"{what} {path}: the key {error} is given twice; keep one") from None
    return as_mapping(value, f"{what} {path}")


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """`value` if it is a mapping with string keys, {} for an empty file.

    Raises:
        ConfigError: it is anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{where}: expected `section:` blocks of `field: value`, found {value!r:.40}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise KeyError(key)
        result[key] = value
    return result
