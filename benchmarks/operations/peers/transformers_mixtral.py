"""transformers' Mixtral: its MoE block and its whole model, with eager experts or torch's grouped product."""

import torch
from torch import nn

from benchmarks.operations.case import Candidate, Named
from benchmarks.operations.flops import DecoderShape
from benchmarks.operations.moe_problem import MoEProblem, of_module
from benchmarks.operations.peers import package

BLOCK_NAMES = {"router": "gate.weight", "gate_up": "experts.gate_up_proj", "down": "experts.down_proj"}
MODEL_NAMES = {
    "model.embed_tokens": "embedding",
    "model.layers.": "blocks.",
    "model.norm.": "final_norm.",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.": "attention.",
    "mlp.gate.": "ffn.router.",
    "mlp.": "ffn.",
}
"""Parts of Mixtral's parameter names -> parts of ours, replaced in this order."""


def block(problem: MoEProblem, experts: str) -> Candidate:
    """MixtralSparseMoeBlock, with experts `eager` or `grouped_mm`."""
    _, D, I, E, K = problem.shape
    config = package("transformers").MixtralConfig(
        hidden_size=D, intermediate_size=I, num_local_experts=E, num_experts_per_tok=K, router_jitter_noise=0.0
    )
    config._experts_implementation = experts
    layer = package("transformers.models.mixtral.modeling_mixtral").MixtralSparseMoeBlock(config)
    layer = layer.to(problem.x_TD)
    weights = {name: layer.get_parameter(theirs) for name, theirs in BLOCK_NAMES.items()}
    with torch.no_grad():
        weights["router"].copy_(problem.router_ED)
        weights["gate_up"].copy_(problem.gate_up_EHD)
        weights["down"].copy_(problem.down_EDI)
    return of_module(problem, layer, weights, lambda gradients: gradients)


def model(shape: DecoderShape, weights: Named, experts: str, eps: float, rope_theta: float) -> nn.Module:
    """MixtralForCausalLM in fp32, training mode, without its auxiliary loss.

    Args:
        shape: sizes; the embedding is tied to the output.
        weights: canonical name -> tensor, by the layout of storyteller_ds.model.canonical.
        experts: `eager` or `grouped_mm`.
        eps: of the norms.
        rope_theta: base of the rotary positions.
    """
    transformers = package("transformers")
    config = transformers.MixtralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.D,
        intermediate_size=shape.I,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        num_local_experts=shape.E,
        num_experts_per_tok=shape.K,
        max_position_embeddings=shape.sequence,
        rms_norm_eps=eps,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=True,
        attention_dropout=0.0,
        router_jitter_noise=0.0,
        output_router_logits=False,
        sliding_window=None,
        use_cache=False,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
        experts_implementation=experts,
        dtype="float32",
    )
    mixtral: nn.Module = transformers.MixtralForCausalLM(config)
    with torch.no_grad():
        for name, parameter in mixtral.named_parameters():
            parameter.copy_(weights[canonical_name(name)])
    return mixtral.train()


def canonical_name(name: str) -> str:
    """Our name for one of Mixtral's parameters."""
    for theirs, ours in MODEL_NAMES.items():
        name = name.replace(theirs, ours)
    return name
