"""Hugging Face folders: which family computes exactly what a run config describes, and its tensor names.

families.py: the families. names.py: their tensors. export.py and load.py: writing and reading a folder.
"""
