"""Import and export of models in the formats of other tools.

layout.py: how the tensors of two layouts map to each other.
huggingface/: folders that transformers loads. llama_cpp.py: GGUF files. llama2c/: llama2.c's files. verify.py: checks
that an export computes the same. export.py and load.py: entry points for all formats. hub.py: exports on the hub.
"""
