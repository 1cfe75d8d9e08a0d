"""storyteller config: resolved configs, settings and presets."""

import json
from pathlib import Path

import click

from storyteller_ds.cli.group import Group
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.config import RunConfig, load_config
from storyteller_ds.config.explain import Setting, sections, settings
from storyteller_ds.config.files import preset_names, preset_summary


@click.group(cls=Group)
def config() -> None:
    """Show resolved configs, explain settings, list the presets."""


@config.command()
@click.option(
    "--config", "config_name", type=UserPath(or_word=True), metavar="PRESET_OR_FILE", help="Preset name or YAML file."
)
@click.option("--ds_config", type=UserPath(), help="DeepSpeed JSON.")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def show(config_name: str | None, ds_config: Path | None, overrides: tuple[str, ...]) -> None:
    """Print the resolved run config as YAML; fields that are not defaults have their source as a comment."""
    loaded = load_config(config_name, overrides, ds_config=ds_config)
    for section, value in loaded.run.model_dump(mode="json").items():
        fields = value if isinstance(value, dict) else None
        if fields is None:
            print(_line(section, value, loaded.sources.get(section)))
            continue
        print(f"{section}:")
        for field, setting in fields.items():
            print("  " + _line(field, setting, loaded.sources.get(f"{section}.{field}")))


@config.command()
def schema() -> None:
    """Print the JSON schema of a run config, with the meaning and unit of every field."""
    print(json.dumps(RunConfig.model_json_schema(), indent=2))


@config.command()
@click.argument("names", nargs=-1, metavar="[SECTION | SECTION.FIELD]...")
def explain(names: tuple[str, ...]) -> None:
    """Explain settings: meaning and unit, accepted values, default, and where it is set.

    Without a name, list the sections.
    """
    formatter = click.HelpFormatter(max_width=100)
    if not names:
        formatter.write_dl(list(sections().items()))
    for setting in (each for name in names for each in settings(name.replace("-", "_"))):
        formatter.write(f"{setting.name}\n")
        with formatter.indentation():
            formatter.write_text(setting.meaning)
            formatter.write_dl(_facts(setting))
    print(formatter.getvalue().rstrip("\n"))


@config.command()
def presets() -> None:
    """List the presets: parameters, active parameters per token, and what each is for."""
    print(f"{'name':<14}{'parameters':>13}{'active':>13}  for what")
    for name in preset_names():
        purpose, parameters, active = preset_summary(name)
        print(f"{name:<14}{parameters:>13,}{active:>13,}  {purpose}")


def _facts(setting: Setting) -> list[tuple[str, str]]:
    section, _, field = setting.name.rpartition(".")
    line = f"{field}: VALUE"
    in_file = f"{section}: {{{line}}}" if section else line
    ways = [f"{setting.name}=VALUE", f"`{in_file}` in a YAML file"]
    if setting.json_key:
        ways.append(f"{setting.json_key} in the DeepSpeed JSON")
    facts = [("takes", setting.takes), ("default", json.dumps(setting.default)), ("set by", "; ".join(ways))]
    if given := setting.in_presets():
        facts.append(("presets", "; ".join(f"{value} in {', '.join(names)}" for value, names in given.items())))
    return facts


def _line(field: str, value: object, source: str | None) -> str:
    # JSON is YAML on one line.
    comment = f"  # {source}" if source else ""
    return f"{field}: {json.dumps(value)}{comment}"
