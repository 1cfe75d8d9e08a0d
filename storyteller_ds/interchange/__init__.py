"""Models in the formats of other tools, both ways.

layout.py: how tensors of one layout lie in those of another. huggingface/: folders that transformers loads. verify.py:
whether what was written computes the same.
"""
