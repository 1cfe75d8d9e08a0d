"""From a preset, a YAML file, a DeepSpeed JSON and the command line to one RunConfig.

Later sources win: preset < YAML file < DeepSpeed JSON for what DeepSpeed owns < `section.field=value`.
A YAML file and a JSON that give the same field different values are an error; both override a preset, and
the command line overrides all. A preset also gives way to what follows from the given values: see `_settle_batch`.
"""

import functools
import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import ValidationError

from storyteller_ds.config import deepspeed
from storyteller_ds.config.base import whole_number
from storyteller_ds.config.deepspeed_types import KEYS as DEEPSPEED_KEYS
from storyteller_ds.config.files import as_mapping, parse_yaml, preset_names, read_preset, read_text
from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.config.run import RunConfig
from storyteller_ds.config.size import Size, settings_of
from storyteller_ds.config.training import OptimizerConfig
from storyteller_ds.errors import ConfigError
from storyteller_ds.redaction import WHAT_TO_DO_ABOUT_IT, secret_within
from storyteller_ds.user_paths import given_path, is_utf8
from storyteller_ds.validation_errors import complaint

DEFAULT_PRESET = "quickstart"
COMMAND_LINE, OVERRIDES = "the command line", "the overrides"
PRESET = "preset "
_COMMENT = re.compile(r"(?:^|\s)#")


@dataclass(frozen=True)
class LoadedConfig:
    """A run config and where it came from."""

    run: RunConfig
    deepspeed: dict[str, Any] | None
    """The DeepSpeed JSON as read, or None without one."""
    name: str
    """Preset or file name, for output folders and titles."""
    sources: Mapping[str, str]
    """Dotted field -> the source that decided it; fields that are absent have their default."""
    ds_config: Path | None = None
    """The file of the DeepSpeed JSON."""
    init_from: Path | None = None
    """Step folder of the checkpoint whose weights the run begins with."""

    @classmethod
    def of(cls, run: RunConfig) -> Self:
        """A run config without sources, for one device."""
        return cls(run=run, deepspeed=None, name="run", sources={})

    def typed(self, field: str) -> str:
        """The name under which a field was given: its own, or the DeepSpeed JSON's for it."""
        return deepspeed.JSON_KEYS[field] if self._is_from_json(field) else field

    def named(self, field: str) -> str:
        """A field with its value, and what decided it unless it was the command line: `seed=0 (the default)`."""
        value = f"{field}={functools.reduce(getattr, field.split('.'), self.run)}"
        if not self.sources:
            return value
        source = self.sources.get(field, "the default")
        if self._is_from_json(field):
            source = f"{deepspeed.JSON_KEYS[field]} in {source}"
        return value if source in (COMMAND_LINE, OVERRIDES) else f"{value} ({source})"

    def _is_from_json(self, field: str) -> bool:
        return self.ds_config is not None and self.sources.get(field) == str(self.ds_config)


def load_config(
    config: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    ds_config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ranks: int = 1,
    model: tuple[str, Mapping[str, Any]] | None = None,
) -> LoadedConfig:
    """Merge all sources into one validated config.

    Args:
        config: name of a preset, or path of a YAML file (which may build on one with `preset: NAME`) or of the
            config.json of a run folder; None: the preset `quickstart`.
        overrides: field -> value, as in {"train.max_steps": 200} or {"train": {"max_steps": 200}}; or
            `section.field=value` texts as on a command line, the value in YAML.
        ds_config: a DeepSpeed JSON: its path, the name of one of ours (zero2), or its content; None: one device.
        ranks: processes that will share a batch.
        model: fields of a model that is there already, and where they are from; they come before those of a preset.

    Raises:
        ConfigError: anything in it cannot be used; the message names the source and the fix.
    """
    if config is not None:
        given_path(config, "config")  # a check; as it is written, ./name is a file and name a preset
    ds_file = None if ds_config is None else deepspeed.file_or_name(ds_config)
    layers = _Layers(ds_file)
    name = _add_run_config(layers, None if config is None else os.fspath(config), model)
    ds = None
    if ds_config is not None and ds_file is not None:
        ds = deepspeed.read_deepspeed_json(ds_file, ds_config if isinstance(ds_config, Mapping) else None)
        written = layers.written_by_user()
        for field, value in deepspeed.run_values(ds).items():
            if field in written and written[field] != value:
                raise ConfigError(
                    f"{field}={written[field]} in {layers.sources[field]}, but {ds_file} has {value}; "
                    f'keep one of the two, for instance by writing "auto" in {ds_file.name}'
                )
            layers.set(field, value, str(ds_file))
    if isinstance(overrides, Mapping):
        layers.merge({field: _plain(value) for field, value in flatten(overrides).items()}, OVERRIDES)
    elif isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise ConfigError(f'overrides={overrides!r:.60}: give a dict, as in {{"train.max_steps": 200}}')
    else:
        _add_command_line(layers, overrides)
    _settle_size(layers)
    _settle_batch(layers, ranks)
    run = layers.validate()
    if ds is None and run.parallel.zero_stage is not None:
        raise ConfigError(
            f"{layers.sources['parallel.zero_stage']}: parallel.zero_stage is set by the DeepSpeed JSON; "
            "use --ds_config ds_configs/zero2.json or another of that folder"
        )
    if run.moe.num_experts and not run.moe_layers:
        # Not in RunConfig: there are checkpoints with such settings, and their models are dense.
        raise ConfigError(
            f"{layers.sources['moe.every_n_layers']}: moe.every_n_layers={run.moe.every_n_layers} is more than "
            f"model.num_layers={run.model.num_layers}, so that no layer would have experts; lower it, or set "
            "moe.num_experts=0 for a dense model"
        )
    return LoadedConfig(run=run, deepspeed=ds, name=name, sources=dict(layers.sources), ds_config=ds_file)


def parse_run_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """A RunConfig from values read back from a file such as a checkpoint's config.json.

    Raises:
        ConfigError: the values are not a valid run config.
    """
    layers = _Layers()
    layers.merge(values, where)
    return layers.validate()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted field -> value; {"a": {"b": 1}} gives {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: Any) -> Any:
    """What a program has in place of a number or a text: numpy's numbers, and paths."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _as_preset(name: str) -> str:
    """The preset for `configs/NAME.yaml`, as the superseded system named its configs, where there is no such file."""
    path = Path(name)
    is_old = path.parent.name == "configs" and path.stem in preset_names() and not path.exists()
    return path.stem if is_old else name


def _add_run_config(layers: "_Layers", config: str | None, model: tuple[str, Mapping[str, Any]] | None = None) -> str:
    name = _as_preset(config or DEFAULT_PRESET)
    is_file = name.endswith((".yaml", ".yml")) or "/" in name or (name not in preset_names() and Path(name).exists())
    if not is_file:
        layers.merge(read_preset(name), f"{PRESET}{name}")
        layers.merge_model(model)
        return name
    values = as_mapping(parse_yaml(read_text(Path(name), "config"), name), name)
    if name.endswith(".json") and values.keys() & (DEEPSPEED_KEYS.keys() - RunConfig.model_fields.keys()):
        raise ConfigError(f"{name} is a DeepSpeed config; give it with --ds_config {name}")
    if isinstance(of_run := values.get("run"), dict):  # the config.json of a run folder, which has more beside it
        values = of_run
    for key in values:
        if "." in key:
            section, _, field = key.partition(".")
            raise ConfigError(
                f"{name}: '{key}' is for the command line; in a file write '{section}:' and '{field}:' in it"
            )
    base = values.pop("preset", None)
    if base is not None:
        layers.merge(read_preset(str(base)), f"{PRESET}{base}")
    layers.merge_model(model)
    layers.merge(values, name)
    return Path(name).stem


def _add_command_line(layers: "_Layers", overrides: Sequence[str]) -> None:
    for override in overrides:
        if not is_utf8(override):
            raise ConfigError(
                f"'{override}' on {COMMAND_LINE} is not UTF-8, as settings must be; rename the file that it names, or "
                "use a UTF-8 locale (LC_ALL=C.UTF-8)"
            )
        field, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(
                f"'{override}' on {COMMAND_LINE} is not of the form section.field=value{_flag_for(override)}"
            )
        layers.set(field.replace("-", "_"), _value_on_command_line(field, text), COMMAND_LINE)


def _value_on_command_line(field: str, text: str) -> Any:
    """The value of an override; a YAML comment, which is part of a name there, would cut it short without a word."""
    value = parse_yaml(text, f"{COMMAND_LINE}, {field}")
    if _COMMENT.search(text) and not isinstance(value, dict | list) and text.lstrip()[0] not in "\"'":
        quoted = shlex.quote(f"{field}={json.dumps(text, ensure_ascii=False)}")
        raise ConfigError(f"{COMMAND_LINE}, {field}: # begins a comment in YAML; put the value in quotes: {quoted}")
    return value


def _flag_for(argument: str) -> str:
    """The flag that was left out before the name of a preset or of a file."""
    if argument in preset_names() or argument.endswith((".yaml", ".yml")):
        return f"; did you mean '--config {argument}'?"
    return f"; did you mean '--ds_config {argument}'?" if argument.endswith(".json") else ""


def _settle_size(layers: "_Layers") -> None:
    """What model.size decides, unless the same source or a later one sets it."""
    size: Any = layers.values.get("model.size")
    optimizer: Any = layers.values.get("optimizer.kind", "adamw")
    if size not in get_args(Size) or optimizer not in get_args(OptimizerConfig.model_fields["kind"].annotation):
        return  # validation will say so
    source, order = layers.sources["model.size"], list(layers.sources)
    same = (source, str(layers.ds_config))
    stays = {f for f in order if layers.sources[f] in same or order.index(f) > order.index("model.size")}
    for field, value in settings_of(size, optimizer).items():
        if field not in stays:
            # As from a preset: the parts of a batch that the user gives go before it.
            layers.set(field, value, f"{PRESET}model.size={size}")


def _settle_batch(layers: "_Layers", ranks: int) -> None:
    """Of the three sizes of a batch the user may give any; what a preset has for the others must not contradict.

    The global batch follows where only the other two were given; else it stays, and a preset's way to split it goes.
    """
    whole, *parts = "train.global_batch_size", "train.micro_batch_size", "train.gradient_accumulation_steps"
    given = {field: whole_number(value) for field, value in layers.written_by_user().items() if value is not None}
    sizes = [given[part] for part in parts if part in given]
    if len(sizes) == 2 and whole not in given and all(_is_count(size) for size in sizes):
        layers.set(whole, math.prod(sizes) * ranks, f"micro_batch_size x gradient_accumulation_steps x {ranks} rank(s)")
    for part in parts if sizes else ():
        if layers.sources.get(part, "").startswith(PRESET):
            layers.set(part, None, "derived from the others")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class _Layers:
    """Values collected so far, by field, each with the source that gave it last."""

    def __init__(self, ds_config: Path | None = None) -> None:
        self.ds_config = ds_config
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        """In the order in which they were given: `_source` names the last one."""

    def merge(self, values: Mapping[str, Any], source: str) -> None:
        for field, value in flatten(values).items():
            if field in RunConfig.model_fields and field != "seed" and value in (None, {}):
                continue  # a section with nothing in it
            self.set(field, value, source)

    def merge_model(self, model: tuple[str, Mapping[str, Any]] | None) -> None:
        if model is not None:
            source, values = model
            self.merge(values, source)

    def set(self, field: str, value: Any, source: str) -> None:
        for fields in (self.values, self.sources):
            fields.pop(field, None)  # to the end
        self.values[field], self.sources[field] = value, source

    def written_by_user(self) -> dict[str, Any]:
        return {field: value for field, value in self.values.items() if not self.sources[field].startswith(PRESET)}

    def _nested(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for field, value in self.values.items():
            *sections, last = field.split(".")
            target = nested
            for section in sections:
                target = target.setdefault(section, {})
                if not isinstance(target, dict):
                    raise ConfigError(f"{self.sources[field]}: '{field}' does not exist, {section} is a single value")
            target[last] = value
        return nested

    def validate(self) -> RunConfig:
        self._refuse_secrets()
        try:
            return RunConfig.model_validate(self._nested())
        except ValidationError as error:
            raise ConfigError(self._explain(error)) from None

    def _refuse_secrets(self) -> None:
        """The run config is recorded in config.json, in every checkpoint and on Weights & Biases."""
        for field, value in self.values.items():
            if name := secret_within({field: value}):
                source = self.sources.get(field, "config")
                advice = WHAT_TO_DO_ABOUT_IT.format(name=name)
                raise ConfigError(f"{source}: {field} holds the value of {name}; {advice}")

    def _explain(self, error: ValidationError) -> str:
        """The first problem as one line: where it was written, what is wrong, what would be right."""
        problem = error.errors()[0]
        location = tuple(map(str, problem["loc"][:2]))  # section and field; then come members of a union
        if problem["type"] == "extra_forbidden":
            return f"{self._source(location)}: unknown key '{'.'.join(location):.80}'{suggest(location)}"
        field = ".".join(location)
        if problem["type"] == "value_error":
            # A rule between fields: its message has the problem and the fix.
            message = complaint(problem)
            return f"{self._source(location, message)}: {f'{field}: ' if field else ''}{message}"
        # The members of a union complain one by one, about the same value.
        complaints = [complaint(each) for each in error.errors() if each["loc"][:2] == problem["loc"][:2]]
        value = problem["input"]
        shown = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
        return f"{self._source(location)}: {field}={shown:.60}: {'; or '.join(complaints)}"

    def _source(self, location: tuple[str, ...], message: str = "") -> str:
        """The source of the value there, or of the fields that the message names."""
        field = ".".join(location)
        named = [f for f in self.sources if f == field or f.startswith(f"{field}.") or not field]
        mentioned = [f for f in named if re.search(rf"\b{re.escape(f.rpartition('.')[2])}\b", message)]
        if not (mentioned or named):
            return "config"
        # Of several sources the last one is the likeliest to be wrong.
        last = (mentioned or named)[-1]
        source = self.sources[last]
        return f"{source}, '{deepspeed.JSON_KEYS[last]}'" if source == str(self.ds_config) else source


def suggest(location: tuple[str, ...]) -> str:
    """The same field in another section if there is one, else the nearest name in this section."""
    *path, name = location
    if location == ("preset",):  # which a file may have
        return "; choose one with --config NAME"
    sections = {name: getattr(field.annotation, "model_fields", {}) for name, field in RunConfig.model_fields.items()}
    if path and not sections.get(path[0]):
        return did_you_mean(path[0], sections)
    homes = [f"{section}.{name}" for section, fields in sections.items() if name in fields]
    if homes:
        return f"; did you mean '{homes[0]}'?"
    return did_you_mean(name, sections[path[0]], f"{path[0]}.") if path else did_you_mean(name, sections)
