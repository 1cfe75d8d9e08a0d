"""The built-in corpus: children's stories made by a grammar, so that a first run needs no network."""
