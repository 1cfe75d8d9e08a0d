"""Whether every topology computes the same on this machine.

rows.py lists the topologies, run.py trains a small model on each, rank.py is one process of such a run, and compare.py
compares what the runs have written.
"""
