"""A decoder's weights, laid out for step.py, and generation with them."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.fast import step
from storyteller_ds.model.attention import ValueEmbedding
from storyteller_ds.model.decoder import Decoder

_NONE = np.empty(0, np.float32)
_ACTIVATIONS = {"swiglu": step.SWIGLU, "gelu": step.GELU, "relu": step.RELU, "relu2": step.RELU2}


class PackedDecoder:
    """A decoder that generates on the CPU at batch 1: prompts by torch, each token after them by step.decode.

    Args:
        decoder: on the CPU, fp32, in eval mode. Its parameters become views of stacks over all layers, so that nothing
            is in memory twice.
        run: its config.
    """

    def __init__(self, decoder: Decoder, run: RunConfig) -> None:
        self.decoder, self.run = decoder, run
        model = run.model
        self.sizes = step.Sizes(
            heads=model.num_heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            top_k=run.moe.top_k,
            norm=step.RMSNORM if model.norm == "rmsnorm" else step.LAYERNORM,
            activation=_ACTIVATIONS[model.activation],
            value_gate_inputs=min(ValueEmbedding.GATE_INPUTS, model.hidden_size),
            eps=model.norm_eps,
            softcap=model.logit_softcap or 0.0,
        )
        self.layers = _layers(decoder, run)
        self.logits = np.empty(run.tokenizer.vocab_size, np.float32)
        self._keys = self._values = np.empty((0, 0, 0, 0), np.float32)
        self._position = 0

    def another(self) -> Self:
        """The same weights for another text at the same time, in another thread."""
        other = copy.copy(self)
        other.logits = np.empty_like(self.logits)
        return other

    @torch.no_grad()
    def begin(self, prompt: Sequence[int], length: int) -> Tensor:
        """See Stepper."""
        model = self.run.model
        shape = (model.num_layers, model.kv_heads, length, model.head_dim)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        caches = [
            _Shared(*(torch.from_numpy(all_of[layer]) for all_of in (self._keys, self._values)))
            for layer in range(model.num_layers)
        ]
        logits_BSV, _ = self.decoder(torch.tensor([list(prompt)]), caches, 0)
        self._position = len(prompt)
        self.logits[:] = logits_BSV[0, -1].numpy()
        return torch.from_numpy(self.logits)

    def step(self, token: int) -> Tensor:
        """See Stepper.

        Raises:
            IndexError: begin() was not told of so many positions; machine code would write beyond their memory.
        """
        if self._position >= self._keys.shape[2]:
            raise IndexError(f"the text was begun for {self._keys.shape[2]} positions")
        step.decode(token, self._position, self.sizes, self.layers, self._keys, self._values, self.logits)
        self._position += 1
        return torch.from_numpy(self.logits)


class _Shared:
    """The cache of a layer, in memory that step.decode reads too; see attention.LayerCache."""

    def __init__(self, key_HTD: Tensor, value_HTD: Tensor) -> None:
        self._key_HTD, self._value_HTD = key_HTD, value_HTD

    def extend(self, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the prompt's, which are all."""
        length = k_BHSD.shape[2]
        self._key_HTD[:, :length], self._value_HTD[:, :length] = k_BHSD[0], v_BHSD[0]
        return k_BHSD, v_BHSD


def _layers(decoder: Decoder, run: RunConfig) -> step.Layers:
    model, blocks = run.model, list(decoder.blocks)
    depth = len(blocks)
    mixtures = [block for i, block in enumerate(blocks) if run.moe.is_moe_layer(i)]
    dense = [block for i, block in enumerate(blocks) if not run.moe.is_moe_layer(i)]
    place = np.array(
        [-1 - mixtures.index(block) if block in mixtures else dense.index(block) for block in blocks], np.int64
    )
    with_value = [block for i, block in enumerate(blocks) if model.has_value_embedding(i)]
    value = np.array([with_value.index(block) if block in with_value else -1 for block in blocks], np.int64)
    head = decoder.embedding if decoder.lm_head is None else decoder.lm_head
    cos, sin = _NONE.reshape(0, 0), _NONE.reshape(0, 0)
    if decoder.rotary is not None:
        angles = decoder.rotary(torch.arange(run.context_length))
        cos, sin = (_numbers(table[:, : model.head_dim // 2]) for table in angles)
    qkv = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    scales = _scales(depth, len(dense), len(mixtures), run)
    return step.Layers(
        embedding=_numbers(decoder.embedding.weight),
        position=_NONE.reshape(0, 0)
        if decoder.position_embedding is None
        else _numbers(decoder.position_embedding.weight),
        head=_numbers(head.weight),
        first_norm=_norms(blocks, "attention_norm"),
        second_norm=_norms(blocks, "ffn_norm"),
        last_norm=_norms([decoder], "final_norm")[0],
        qkv=_stacked(blocks, [f"{name}.weight" for name in qkv]),
        qkv_bias=_stacked(blocks, [f"{name}.bias" for name in qkv]) if model.bias else _NONE.reshape(0, 0),
        out=_stacked(blocks, ["attention.o_proj.weight"]),
        out_bias=_stacked(blocks, ["attention.o_proj.bias"]) if model.bias else _NONE.reshape(0, 0),
        head_norm=_head_norms(blocks) if model.qk_norm else _NONE.reshape(0, 0, 0),
        dense=place,
        up=_stacked(dense, ["ffn.gate_up_proj.weight"], 3),
        up_bias=_stacked(dense, ["ffn.gate_up_proj.bias"], 2) if model.bias else _NONE.reshape(0, 0),
        down=_stacked(dense, ["ffn.down_proj.weight"], 3),
        down_bias=_stacked(dense, ["ffn.down_proj.bias"], 2) if model.bias else _NONE.reshape(0, 0),
        router=_stacked(mixtures, ["ffn.router.weight"], 3),
        expert_up=_stacked(mixtures, ["ffn.experts.gate_up_proj"], 4),
        expert_up_bias=_stacked(mixtures, ["ffn.experts.gate_up_bias"], 3) if model.bias else _NONE.reshape(0, 0, 0),
        expert_down=_stacked(mixtures, ["ffn.experts.down_proj"], 4),
        expert_down_bias=_stacked(mixtures, ["ffn.experts.down_bias"], 3) if model.bias else _NONE.reshape(0, 0, 0),
        value=value,
        value_embedding=_stacked(with_value, ["attention.value_embedding.embedding.weight"], 3),
        value_gate=_stacked(with_value, ["attention.value_embedding.gate.weight"], 3),
        residual=_stacked(blocks, ["residual.scale"]) if model.residual_scales else _NONE.reshape(0, 0),
        cos=cos,
        sin=sin,
        **scales,
    )


def _scales(depth: int, dense: int, mixtures: int, run: RunConfig) -> dict[str, NDArray[np.float32]]:
    """Of fp32 weights: none, but one empty row for each matrix."""
    experts = run.moe.num_experts
    return {
        "head_scale": _NONE,
        "qkv_scale": np.empty((depth, 0), np.float32),
        "out_scale": np.empty((depth, 0), np.float32),
        "up_scale": np.empty((dense, 0), np.float32),
        "down_scale": np.empty((dense, 0), np.float32),
        "expert_up_scale": np.empty((mixtures, experts, 0), np.float32),
        "expert_down_scale": np.empty((mixtures, experts, 0), np.float32),
    }


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = tensor.detach().float().contiguous().numpy()
    return numbers


def _stacked(modules: Sequence[Any], names: Sequence[str], dimensions: int | None = None) -> NDArray[np.float32]:
    """[modules, rows, ...]: parameters of these names, joined along their rows, which become views of it."""
    if not modules:
        return _NONE.reshape((0,) * (dimensions or 1))
    parameters = [[module.get_parameter(name) for name in names] for module in modules]
    stack = torch.stack([torch.cat([parameter.detach() for parameter in row]) for row in parameters])
    for joined, row in zip(stack, parameters, strict=True):
        for parameter, part in zip(row, joined.split([len(parameter) for parameter in row]), strict=True):
            parameter.data = part
    return _numbers(stack)


def _norms(modules: Sequence[Any], name: str) -> NDArray[np.float32]:
    """[modules, 2, D]: gain and bias."""
    rows = []
    for module in modules:
        norm = getattr(module, name)
        bias = getattr(norm, "bias", None)
        rows.append(
            torch.stack([norm.weight.detach(), torch.zeros_like(norm.weight) if bias is None else bias.detach()])
        )
    return _numbers(torch.stack(rows))


def _head_norms(blocks: Sequence[Any]) -> NDArray[np.float32]:
    gains = [torch.stack([b.attention.q_norm.weight, b.attention.k_norm.weight]) for b in blocks]
    return _numbers(torch.stack(gains))
