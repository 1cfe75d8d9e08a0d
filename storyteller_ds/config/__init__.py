"""Run configs: what can be set, where it may be written, and what is refused."""

from storyteller_ds.config.load import LoadedConfig, load_config, parse_run_config
from storyteller_ds.config.run import RunConfig

__all__ = ["LoadedConfig", "RunConfig", "load_config", "parse_run_config"]
