"""Engines: model and optimizer of a run on one device or under DeepSpeed, behind one protocol (base.py)."""
