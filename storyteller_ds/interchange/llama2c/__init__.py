"""llama2.c's files: model_file.py reads and writes models, data/tokenizers/llama2c.py the tokenizers."""
