"""Estimates of what a run will need, before it is started: memory, messages, time, money (`storyteller plan`)."""
