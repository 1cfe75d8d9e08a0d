"""From found text to stories that can be trained on (docs/cleaning.md); `pipeline.py` is the order of the steps."""
