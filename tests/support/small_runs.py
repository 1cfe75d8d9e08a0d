"""The smallest run, as settings for the Python API."""

from storyteller_ds.config.files import parse_yaml
from tests.support.distributed import SMALLEST_RUN

SMALLEST = {field: parse_yaml(value, field) for field, _, value in (each.partition("=") for each in SMALLEST_RUN)}
"""SMALLEST_RUN as a mapping."""
