"""Models in the formats of other tools, both ways.

layout.py: how tensors of one layout lie in those of another.
huggingface/: folders that transformers loads. llama_cpp.py: GGUF files. llama2c/: llama2.c's files. verify.py: whether
what was written computes the same. export.py and load.py: all formats under one roof. hub.py: exports on the hub.
"""
