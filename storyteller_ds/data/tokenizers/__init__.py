"""Text to token ids and back, for any kind of tokenizer; each is stored as a tokenizer.json.

tokenizer.py: the class of every kind. tokenizer_json.py: reading the file. choose.py: from the run config to a
tokenizer. Trained here: byte_level.py, characters.py, sentencepiece.py. From elsewhere: gpt2.py, llama2c.py.
scored.py: tokens with scores, shared by sentencepiece.py and llama2c.py. pieces.py: what a token stands for.
compare.py, plot.py: several tokenizers on one text.
"""
