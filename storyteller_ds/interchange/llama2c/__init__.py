"""llama2.c's files: model_file.py has header and weights, both ways. Its tokenizers: data/tokenizers/llama2c.py."""
