"""What a sweep varies: `FIELD=V1,V2,V3`, each value as on the command line of a run, or `FIELD=LOW..HIGH`."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from storyteller_ds.config.explain import settings
from storyteller_ds.config.files import parse_yaml
from storyteller_ds.config.load import LoadedConfig, load_config
from storyteller_ds.errors import ConfigError

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

OF_TRIALS = ("checkpoint.keep_last=1", "checkpoint.keep_best=0")
"""Settings that override the config in every trial: only the newest checkpoint is kept."""
DIGITS = 4
"""Significant digits of a value from a range, so that it can be typed."""
_TEXT = ("data.validation", "data.revision", "data.text_field", "data.split", "data.encoding", "data.bad_rows")
_TEXT_UNLESS_NAMED = ("data.source", "data.validation_fraction", "data.builtin_stories")
"""Fields that decide which text a run is scored on; these ones only if data.validation names no text of its own."""
Values = Mapping[str, str]
"""Field -> value of a trial, as typed."""


@dataclass(frozen=True)
class Listed:
    """A field and the values that are tried, as typed."""

    field: str
    texts: tuple[str, ...]

    @property
    def written(self) -> str:
        """As on the command line."""
        return ",".join(self.texts)

    def suggest(self, trial: "BaseTrial") -> str:
        """The value of a trial; optuna chooses it if the trial has none yet."""
        return trial.suggest_categorical(self.field, self.texts)


@dataclass(frozen=True)
class Range:
    """A field and the ends of the range of its values, both included: integers or floats."""

    field: str
    low: float
    high: float

    @property
    def texts(self) -> tuple[str, str]:
        """Both ends, as typed."""
        return repr(self.low), repr(self.high)

    @property
    def written(self) -> str:
        """As on the command line."""
        return "..".join(self.texts)

    @property
    def is_log(self) -> bool:
        """Whether it is varied on a log scale."""
        return spans_magnitudes((self.low, self.high))

    def suggest(self, trial: "BaseTrial") -> str:
        """The value of a trial, floats rounded to DIGITS; optuna chooses it if the trial has none yet."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return repr(trial.suggest_int(self.field, self.low, self.high, log=self.is_log))
        value = trial.suggest_float(self.field, self.low, self.high, log=self.is_log)
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))


def spans_magnitudes(values: Sequence[float]) -> bool:
    """Whether numbers are positive and span an order of magnitude, so that a log scale makes sense."""
    return 0 < 10 * min(values) <= max(values)


@dataclass(frozen=True)
class Space:
    """A run config, and what is varied in it."""

    config: str | None
    """A preset's name or a YAML file."""
    overrides: tuple[str, ...]
    """`section.field=value` of every trial."""
    varied: tuple[Listed | Range, ...]

    @property
    def has_range(self) -> bool:
        """Whether there are more values than can be tried."""
        return any(isinstance(each, Range) for each in self.varied)

    def corners(self) -> Iterator[Values]:
        """All combinations of values (the ends of a range), in the order typed; the last field changes fastest."""
        for texts in itertools.product(*(each.texts for each in self.varied)):
            yield {each.field: text for each, text in zip(self.varied, texts, strict=True)}

    def load(self, values: Values) -> LoadedConfig:
        """The config of a trial.

        Raises:
            ConfigError: these values are not valid.
        """
        return load_config(self.config, [*OF_TRIALS, *self.arguments(values)])

    def arguments(self, values: Values) -> list[str]:
        """The command-line arguments for these values, after `--config NAME`."""
        return [*self.overrides, *(f"{field}={text}" for field, text in values.items())]


def read_space(config: str | None, vary: Sequence[str], overrides: Sequence[str]) -> Space:
    """Parse the values of `--vary`, and check every combination.

    Raises:
        ConfigError: a field or a value cannot be used, a field is given twice, or trials would be scored on different
            texts.
    """
    given = tuple(overrides)
    validation = Space(config, given, ()).load({}).run.data.validation
    taken = [_field(override) for override in overrides]
    ranges: set[str] = set()
    varied: list[Listed | Range] = []
    for each in vary:
        field, text = _field(each), each.partition("=")[2]
        if "=" not in each:
            raise ConfigError(f"--vary '{each}' is not of the form section.field=V1,V2,V3 or section.field=LOW..HIGH")
        _check_field(field, taken, is_text_named=validation not in (None, "builtin"))
        taken.append(field)
        low, _, high = text.partition("..")
        if _is_number(low) and _is_number(high):
            ranges.add(field)
        varied.append(Listed(field, (low, high) if field in ranges else _items(field, text)))
    values = _resolve(Space(config, given, tuple(varied)))
    for index, of_field in enumerate(varied):
        field, meant = of_field.field, [values[of_field.field, text] for text in of_field.texts]
        if len({*meant}) < len(meant):
            raise ConfigError(f"--vary {field}={of_field.written}: a value is given twice")
        if field in ranges:
            varied[index] = _range(field, *meant)
    return Space(config, given, tuple(varied))


def _check_field(field: str, taken: Sequence[str], is_text_named: bool) -> None:
    """Refuse a field that cannot be varied.

    Args:
        field: the field to vary.
        taken: fields that already have values.
        is_text_named: whether data.validation is a text of its own.
    """
    if [setting.name for setting in settings(field)] != [field]:
        raise ConfigError(f"--vary {field}: it is a section; name one of its fields")
    if field in taken:
        raise ConfigError(f"{field} is given twice; it can be varied once, or have one value in all trials")
    if field in _TEXT or (field in _TEXT_UNLESS_NAMED and not is_text_named):
        raise ConfigError(
            f"--vary {field}: trials would be scored on different texts, and could not be compared; "
            "name one text for all of them, data.validation=FILE, or leave this field as it is"
        )


def _field(override: str) -> str:
    return override.partition("=")[0].replace("-", "_")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _items(field: str, text: str) -> tuple[str, ...]:
    """The texts between the commas; commas in quotes or brackets are part of a value, as in a YAML list."""
    items = f"[{text}]"
    if not parse_yaml(items, f"--vary {field}={text}"):
        raise ConfigError(f"--vary {field}: it has no values; list some, V1,V2,V3")
    nodes = YAML(typ="safe", pure=True).compose(items).value
    return tuple(items[node.start_mark.index : node.end_mark.index] for node in nodes)


def _resolve(space: Space) -> dict[tuple[str, str], Any]:
    """(field, text) -> value in the run config; every combination of values must be possible."""
    values: dict[tuple[str, str], Any] = {}
    for corner in space.corners():
        run = space.load(corner).run
        values |= {(field, text): functools.reduce(getattr, field.split("."), run) for field, text in corner.items()}
    return values


def _range(field: str, low: Any, high: Any) -> Range:
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        raise ConfigError(f"--vary {field}={low}..{high}: its values are not numbers; list some, V1,V2,V3")
    if low > high:
        raise ConfigError(f"--vary {field}={low}..{high}: the second end must be larger than the first")
    return Range(field, low, high)
