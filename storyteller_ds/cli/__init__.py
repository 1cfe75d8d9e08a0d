"""The storyteller command, one module a verb."""
