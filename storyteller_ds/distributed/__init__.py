"""Ranks and devices: who takes part in a run, how batch and experts are shared, how ranks wait for each other."""
