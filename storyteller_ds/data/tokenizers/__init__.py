"""Text to token ids and back, whatever the kind of tokenizer; each is kept as a tokenizer.json.

tokenizer.py: what every kind is. tokenizer_json.py: reading the file. choose.py: from the run config to a tokenizer.
Trained here: byte_level.py, characters.py, sentencepiece.py. Of others: gpt2.py, llama2c.py. scored.py: tokens with
scores, which sentencepiece.py and llama2c.py share. pieces.py: what a token stands for. compare.py, plot.py: several
tokenizers on one text.
"""
