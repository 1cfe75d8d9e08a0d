"""Turns found text into stories that can be trained on (docs/cleaning.md); `pipeline.py` has the order of the steps."""
