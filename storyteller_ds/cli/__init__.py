"""The storyteller command, with one module per verb."""
