"""The families of transformers that compute exactly what a run config describes.

Each works in both directions: what a run config must be, the config.json that says the same, and the way back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import UserError
from storyteller_ds.interchange.huggingface import names
from storyteller_ds.interchange.layout import Piece


@dataclass(frozen=True)
class Family:
    """A model class of transformers."""

    model_type: str
    architecture: str
    requires: Mapping[str, Any]
    """Fields of the run config, and the value that the family computes with."""
    config: Callable[[RunConfig], dict[str, Any]]
    """Entries of config.json beyond those that all families have."""
    settings: Callable[[Mapping[str, Any]], dict[str, Any]]
    """From a config.json to the sections of a run config."""
    fixed: Mapping[str, Any]
    """Entries of a config.json for which we support only one value, which is also that of a missing entry."""
    pieces: Callable[[RunConfig], list[Piece]]

    def obstacles(self, run: RunConfig) -> list[str]:
        """The settings of a run config that it cannot compute, as section.field=value."""
        found = []
        for name, wanted in self.requires.items():
            section, _, field = name.partition(".")
            value = getattr(getattr(run, section), field)
            if value != wanted:
                found.append(f"{name}={value}")
        return found


_FIXED = {"hidden_act": "silu", "attention_bias": False, "rope_scaling": None}
_LLAMA_BLOCK = {
    "model.norm": "rmsnorm",
    "model.position": "rope",
    "model.activation": "swiglu",
    "model.bias": False,
    "model.logit_softcap": None,
    "model.value_embeddings": False,
    "model.residual_scales": False,
}
_DENSE = {"moe.num_experts": 0}


def _llama_config(run: RunConfig) -> dict[str, Any]:
    model = run.model
    return {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": run.context_length,
        "rms_norm_eps": model.norm_eps,
        # transformers 5 reads the first, everything else the second.
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "attention_bias": False,
        "attention_dropout": model.dropout,
        "initializer_range": model.init_std,
    }


def _llama_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    rope = document.get("rope_parameters") or {}
    model = {
        "hidden_size": document["hidden_size"],
        "intermediate_size": document["intermediate_size"],
        "num_layers": document["num_hidden_layers"],
        "num_heads": document["num_attention_heads"],
        "num_kv_heads": document.get("num_key_value_heads", document["num_attention_heads"]),
        "norm_eps": document["rms_norm_eps"],
        "rope_theta": rope.get("rope_theta", document.get("rope_theta", 10_000.0)),
    }
    return {
        "model": model,
        "moe": {"num_experts": 0},
        **_shared_settings(document, document["max_position_embeddings"]),
    }


def _shared_settings(document: Mapping[str, Any], context: int) -> dict[str, Any]:
    return {"data": {"sequence_length": context}, "tokenizer": {"vocab_size": document["vocab_size"]}}


def _mixtral_config(run: RunConfig) -> dict[str, Any]:
    return {
        **_llama_config(run),
        "num_local_experts": run.moe.num_experts,
        "num_experts_per_tok": run.moe.top_k,
        "router_aux_loss_coef": run.moe.balance_loss_coef,
        "output_router_logits": False,
        "sliding_window": None,
    }


def _mixtral_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    experts = {"num_experts": document["num_local_experts"], "top_k": document["num_experts_per_tok"]}
    return {**_llama_settings(document), "moe": experts}


def _qwen3_config(run: RunConfig) -> dict[str, Any]:
    return {**_llama_config(run), "use_sliding_window": False, "sliding_window": None}


def _qwen3_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    settings = _llama_settings(document)
    return {**settings, "model": {**settings["model"], "qk_norm": True}}


def _qwen3_moe_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    settings = _qwen3_settings(document)
    every = document.get("decoder_sparse_step", 1)
    inner = document["moe_intermediate_size"]
    if every != 1 and inner != document["intermediate_size"]:
        raise ValueError(f"moe_intermediate_size={inner} beside dense layers of {document['intermediate_size']}")
    return {
        **settings,
        "model": {**settings["model"], "intermediate_size": inner},
        "moe": {
            "num_experts": document["num_experts"],
            "top_k": document["num_experts_per_tok"],
            "every_n_layers": every,
        },
    }


def _qwen3_moe_config(run: RunConfig) -> dict[str, Any]:
    return {
        **_qwen3_config(run),
        "num_experts": run.moe.num_experts,
        "num_experts_per_tok": run.moe.top_k,
        "moe_intermediate_size": run.model.intermediate_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": run.moe.every_n_layers,
        "mlp_only_layers": [],
        "router_aux_loss_coef": run.moe.balance_loss_coef,
        "output_router_logits": False,
    }


def _gpt2_config(run: RunConfig) -> dict[str, Any]:
    model = run.model
    return {
        "n_embd": model.hidden_size,
        "n_inner": model.intermediate_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_positions": run.context_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.norm_eps,
        "initializer_range": model.init_std,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), model.dropout),
    }


def _gpt2_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    width = document["n_embd"]
    model = {
        "hidden_size": width,
        "intermediate_size": document.get("n_inner") or 4 * width,
        "num_layers": document["n_layer"],
        "num_heads": document["n_head"],
        "norm": "layernorm",
        "norm_eps": document.get("layer_norm_epsilon", 1e-5),
        "position": "learned",
        "activation": "gelu",
        "bias": True,
    }
    return {"model": model, "moe": {"num_experts": 0}, **_shared_settings(document, document["n_positions"])}


FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        {**_LLAMA_BLOCK, **_DENSE, "model.qk_norm": False},
        lambda run: {**_llama_config(run), "mlp_bias": False},
        _llama_settings,
        {**_FIXED, "mlp_bias": False},
        names.llama,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        {**_LLAMA_BLOCK, **_DENSE, "model.qk_norm": True},
        _qwen3_config,
        _qwen3_settings,
        {**_FIXED, "use_sliding_window": False},
        names.llama,
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        {**_LLAMA_BLOCK, "model.qk_norm": False, "moe.every_n_layers": 1},
        _mixtral_config,
        _mixtral_settings,
        {**_FIXED, "sliding_window": None},
        names.mixtral,
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_LLAMA_BLOCK, "model.qk_norm": True},
        _qwen3_moe_config,
        _qwen3_moe_settings,
        {**_FIXED, "use_sliding_window": False, "norm_topk_prob": True, "mlp_only_layers": []},
        names.qwen3_moe,
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        {
            **_DENSE,
            "model.norm": "layernorm",
            "model.position": "learned",
            "model.activation": "gelu",
            "model.bias": True,
            "model.qk_norm": False,
            "model.logit_softcap": None,
            "model.value_embeddings": False,
            "model.residual_scales": False,
        },
        _gpt2_config,
        _gpt2_settings,
        {
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        names.gpt2,
    ),
)


def family_of(run: RunConfig) -> Family:
    """The family that computes exactly what the run config describes.

    Raises:
        UserError: there is none; names the settings that the nearest one does not support.
    """
    # A dense model is not an MoE model with one expert, though the weights would fit.
    wanted = [family for family in FAMILIES if ("moe.num_experts" in family.requires) == (run.moe_layers == 0)]
    nearest = min(wanted, key=lambda family: len(family.obstacles(run)))
    if obstacles := nearest.obstacles(run):
        raise UserError(
            f"no family of Hugging Face's transformers computes this model: {nearest.architecture} comes nearest, but "
            f"has no {', '.join(obstacles)}; export it as safetensors, or train a model without"
        )
    return nearest


def config_json(run: RunConfig, family: Family, end_of_text: int, dtype: str) -> dict[str, Any]:
    """The content of config.json.

    Args:
        run: run config of the model.
        family: its family.
        end_of_text: the token that begins and ends every story.
        dtype: dtype of the weights that are written, as torch names it.
    """
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": run.tokenizer.vocab_size,
        "tie_word_embeddings": run.model.tie_embeddings,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
        "use_cache": True,
        **family.config(run),
    }


def run_settings(document: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The sections of a run config that compute what a config.json describes.

    Raises:
        UserError: an entry is missing, or has a value that we do not support.
    """
    for name, wanted in family.fixed.items():
        if document.get(name, wanted) != wanted:
            raise UserError(f"{name}={document[name]!r:.60} is not what we compute, which is {wanted!r}")
    rope = document.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"rope_parameters={rope!r:.80} scales rotary embeddings, which we do not")
    try:
        settings = family.settings(document)
        heads, width = document.get("num_attention_heads"), document.get("hidden_size")
        if document.get("head_dim") is not None and document["head_dim"] * heads != width:
            raise ValueError(f"head_dim={document['head_dim']} is not hidden_size / num_attention_heads")
    except KeyError as error:
        raise UserError(f"there is no {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    ties = family.model_type == "gpt2"  # the default of the transformers classes
    settings["model"]["tie_embeddings"] = document.get("tie_word_embeddings", ties)
    return settings
