"""The tensors of each family, and the canonical tensors that they correspond to."""

from collections.abc import Callable, Iterator

from storyteller_ds.config.run import RunConfig
from storyteller_ds.interchange.layout import WHOLE, Piece, View


def llama(run: RunConfig) -> list[Piece]:
    """Llama, and Qwen3, which has norms of queries and keys."""
    return [*_llama_blocks(run, lambda layer: _llama_ffn(run, layer))]


def mixtral(run: RunConfig) -> list[Piece]:
    """Mixtral."""
    names = ("w1", "w3", "w2")
    return [*_llama_blocks(run, lambda layer: _experts(run, layer, "block_sparse_moe", names))]


def qwen3_moe(run: RunConfig) -> list[Piece]:
    """Qwen3-MoE, in which some blocks may be dense."""
    names = ("gate_proj", "up_proj", "down_proj")

    def ffn(layer: int) -> Iterator[Piece]:
        return _experts(run, layer, "mlp", names) if run.moe.is_moe_layer(layer) else _llama_ffn(run, layer)

    return [*_llama_blocks(run, ffn)]


def gpt2(run: RunConfig) -> list[Piece]:
    """GPT-2, which stores weights transposed, and queries, keys and values as one tensor."""
    model = run.model
    width, inner, vocabulary = model.hidden_size, model.intermediate_size, run.tokenizer.vocab_size
    pieces = [
        Piece("embedding.weight", "transformer.wte.weight", (vocabulary, width)),
        Piece("position_embedding.weight", "transformer.wpe.weight", (run.context_length, width)),
    ]
    across = View(transposed=True)
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for our_norm, their_norm in (("attention_norm", "ln_1"), ("ffn_norm", "ln_2")):
            pieces += _both(f"{ours}.{our_norm}", f"{theirs}.{their_norm}", (width,), (width,))
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            columns = slice(part * width, (part + 1) * width)
            pieces.append(
                Piece(
                    f"{ours}.attention.{name}.weight",
                    f"{theirs}.attn.c_attn.weight",
                    (width, 3 * width),
                    across,
                    View((slice(None), columns)),
                )
            )
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = slice(part * width, (part + 1) * width)
            bias = f"{theirs}.attn.c_attn.bias"
            pieces.append(Piece(f"{ours}.attention.{name}.bias", bias, (3 * width,), their_view=View((rows,))))
        for our_name, their_name, inputs, outputs in (
            ("attention.o_proj", "attn.c_proj", width, width),
            ("ffn.gate_up_proj", "mlp.c_fc", width, inner),
            ("ffn.down_proj", "mlp.c_proj", inner, width),
        ):
            pieces += _both(f"{ours}.{our_name}", f"{theirs}.{their_name}", (inputs, outputs), (outputs,), across)
    pieces += _both("final_norm", "transformer.ln_f", (width,), (width,))
    if not model.tie_embeddings:
        pieces.append(Piece("lm_head.weight", "lm_head.weight", (vocabulary, width)))
    return pieces


def _both(ours: str, theirs: str, weight: tuple[int, ...], bias: tuple[int, ...], view: View = WHOLE) -> list[Piece]:
    """Weight and bias of one layer."""
    return [
        Piece(f"{ours}.weight", f"{theirs}.weight", weight, view),
        Piece(f"{ours}.bias", f"{theirs}.bias", bias),
    ]


def _llama_blocks(run: RunConfig, ffn: "_FeedForward") -> Iterator[Piece]:
    model = run.model
    width, vocabulary = model.hidden_size, run.tokenizer.vocab_size
    heads = {"q_proj": model.num_heads, "k_proj": model.kv_heads, "v_proj": model.kv_heads}
    yield Piece("embedding.weight", "model.embed_tokens.weight", (vocabulary, width))
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        yield Piece(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight", (width,))
        for name, count in heads.items():
            shape = (count * model.head_dim, width)
            yield Piece(f"{ours}.attention.{name}.weight", f"{theirs}.self_attn.{name}.weight", shape)
        yield Piece(f"{ours}.attention.o_proj.weight", f"{theirs}.self_attn.o_proj.weight", (width, width))
        if model.qk_norm:
            for name in ("q_norm", "k_norm"):
                yield Piece(f"{ours}.attention.{name}.weight", f"{theirs}.self_attn.{name}.weight", (model.head_dim,))
        yield Piece(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", (width,))
        yield from ffn(layer)
    yield Piece("final_norm.weight", "model.norm.weight", (width,))
    if not model.tie_embeddings:
        yield Piece("lm_head.weight", "lm_head.weight", (vocabulary, width))


def _llama_ffn(run: RunConfig, layer: int) -> Iterator[Piece]:
    width, inner = run.model.hidden_size, run.model.intermediate_size
    ours, theirs = f"blocks.{layer}.ffn", f"model.layers.{layer}.mlp"
    # Our layout stacks the gate above the up projection.
    for name, rows in (("gate_proj", slice(inner)), ("up_proj", slice(inner, None))):
        yield Piece(f"{ours}.gate_up_proj.weight", f"{theirs}.{name}.weight", (inner, width), View((rows,)))
    yield Piece(f"{ours}.down_proj.weight", f"{theirs}.down_proj.weight", (width, inner))


def _experts(run: RunConfig, layer: int, block: str, names: tuple[str, str, str]) -> Iterator[Piece]:
    width, inner = run.model.hidden_size, run.model.intermediate_size
    ours, theirs = f"blocks.{layer}.ffn", f"model.layers.{layer}.{block}"
    gate, up, down = names
    yield Piece(f"{ours}.router.weight", f"{theirs}.gate.weight", (run.moe.num_experts, width))
    for expert in range(run.moe.num_experts):
        one = f"{theirs}.experts.{expert}"
        for name, rows in ((gate, slice(inner)), (up, slice(inner, None))):
            yield Piece(f"{ours}.experts.gate_up_proj", f"{one}.{name}.weight", (inner, width), View((expert, rows)))
        yield Piece(f"{ours}.experts.down_proj", f"{one}.{down}.weight", (width, inner), View((expert,)))


_FeedForward = Callable[[int], Iterator[Piece]]
"""The pieces of a layer's feed-forward part."""
