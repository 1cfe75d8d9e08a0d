"""Weights and optimizer state in files (ZeRO-Infinity, Rajbhandari et al. 2021).

settings.py: what the JSON must and must not set. folders.py: where the files go. compile.py: the operation it needs.
"""
