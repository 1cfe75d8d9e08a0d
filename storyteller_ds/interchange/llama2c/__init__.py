"""llama2.c's files: model.bin and tokenizer.bin, both ways.

model_file.py: header and weights. tokenizer_file.py: tokens with scores.
"""
