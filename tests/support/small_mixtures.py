"""The small mixtures that the atlas is tested on."""

from tests.support.small_runs import SMALLEST

STORIES = [
    f'Ünder the tree there was a fox named Kit{i}. "I ate {i * i % 7} cakes," said Kit. He sang to Ann. The end of {i}.'
    for i in range(30)
]
SETTINGS = {
    **SMALLEST,
    **{"model.num_layers": 2, "moe.num_experts": 4, "moe.top_k": 2, "data.sequence_length": 32, "model.init_std": 0.3},
    **{"optimizer.kind": "adamw", "optimizer.lr": 1e-6, "tokenizer.vocab_size": 80},
}
KINDS = {
    "char": {},
    "bpe": {"tokenizer.kind": "bpe", "tokenizer.vocab_size": 300},
    "masked": {"data.document_mask": True, "data.packing": "best_fit"},
    "sentencepiece": {"tokenizer.kind": "sentencepiece", "tokenizer.vocab_size": 400},
    "gpt2": {"model.norm": "layernorm", "model.activation": "gelu", "model.bias": True, "moe.every_n_layers": 2},
    "single": {"moe.num_experts": 1, "moe.top_k": 1},
    "all": {"moe.num_experts": 2},
    "one_each": {"moe.top_k": 1},
    "dense": {"moe.num_experts": 0},
}
