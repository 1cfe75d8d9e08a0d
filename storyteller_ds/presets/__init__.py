"""Run configs by name."""
