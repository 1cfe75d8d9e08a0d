"""storyteller config: what a run would be, and what can be set."""

import json
from pathlib import Path

import click

from storyteller_ds.config import RunConfig, load_config
from storyteller_ds.config.files import preset_names


@click.group()
def config() -> None:
    """Show resolved configs, their schema, and the presets."""


@config.command()
@click.option("--config", "config_name", metavar="PRESET_OR_FILE", help="Preset name or YAML file.")
@click.option("--ds_config", type=click.Path(path_type=Path), help="DeepSpeed JSON.")
@click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
def show(config_name: str | None, ds_config: Path | None, overrides: tuple[str, ...]) -> None:
    """Print the resolved run config as YAML; fields that are not defaults say where they come from."""
    loaded = load_config(config_name, ds_config, overrides)
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
def presets() -> None:
    """List the presets."""
    print("\n".join(preset_names()))


def _line(field: str, value: object, source: str | None) -> str:
    # JSON is YAML on one line.
    comment = f"  # {source}" if source else ""
    return f"{field}: {json.dumps(value)}{comment}"
