"""A decoder's weights, laid out for step.py."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.fast import step
from storyteller_ds.model.attention import ValueEmbedding
from storyteller_ds.model.counts import product_weights
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.quantized import held_quantized

_LAYING_OUT = threading.Lock()
"""One thread at a time; not an attribute, since an object with a lock cannot be copied."""
_NONE = np.empty(0, np.float32)
_ACTIVATIONS = {"swiglu": step.SWIGLU, "gelu": step.GELU, "relu": step.RELU, "relu2": step.RELU2}


class PackedWeights:
    """A decoder's weights as step.decode reads them.

    Args:
        decoder: on the CPU, fp32 or held quantized. Its parameters become views of stacks over all layers, so that
            nothing is in memory twice. It may be changed between two stories.
        run: its config.

    Attributes:
        sizes: see step.Sizes.
        multiplied: number of weights that a token is multiplied by.
    """

    def __init__(self, decoder: Decoder, run: RunConfig) -> None:
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
        self.multiplied = int(product_weights(run))
        self._decoder, self._run = decoder, run
        self._pack()
        self._rotary = decoder.rotary
        self._half = model.head_dim // 2
        self._up = max(self._layers.up.shape[1], self._layers.expert_up.shape[2])
        self._rows = run.moe.top_k if len(self._layers.expert_up) else 1

    def work(self, tokens: int, threads: int, positions: int) -> step.Work:
        """Memory for a step of this many tokens, in texts of at most this many positions."""
        sizes, layers = self.sizes, self._layers
        columns, features, rows = layers.qkv.shape[1], layers.first_norm.shape[2], tokens * self._rows
        return step.Work(
            every=np.arange(tokens),
            first=np.empty((tokens, features), np.float32),
            normal=np.empty((tokens, features), np.float32),
            qkv=np.empty((tokens, columns), np.float32),
            attended=np.empty((tokens, sizes.heads * sizes.head_dim), np.float32),
            score=np.empty((threads, positions), np.float32),
            chosen=np.zeros((tokens, sizes.top_k), np.int64),
            gate=np.empty((tokens, sizes.top_k), np.float32),
            hidden=np.empty(rows * self._up, np.float32),
            act=np.empty(rows * self._up, np.float32),
            branch=np.empty((rows, features), np.float32),
        )

    def current(self) -> step.Layers:
        """The current weights, laid out again if one was changed, replaced or moved, for example into shared memory."""
        with _LAYING_OUT:
            if self._state != _state(self._decoder):
                self._pack()
            return self._layers

    def where_they_are(self) -> step.Layers:
        """Faster than current(): laid out again only if they were moved."""
        return self._layers if self._first.data_ptr() == self._place else self.current()

    def _pack(self) -> None:
        self._layers = _layers(self._decoder, self._run)
        self._embedding, self._embedding_scale = _table(self._decoder, "embedding.weight")
        self._state, self._first = _state(self._decoder), next(_tensors(self._decoder))
        self._place = self._first.data_ptr()

    def layers(self, positions: int) -> step.Layers:
        """The weights with the rotary angles of this many positions."""
        if self._rotary is None:
            return self._layers
        cos, sin = (_numbers(table[:, : self._half]) for table in self._rotary(torch.arange(positions)))
        return self._layers._replace(cos=cos, sin=sin)

    def embedded(self, token_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """[N, D] embeddings, a copy."""
        rows: NDArray[np.float32] = self._embedding[token_N]
        return rows * self._embedding_scale[token_N] if self._embedding_scale.size else rows


def _state(decoder: Decoder) -> list[tuple[int, int]]:
    """Where each tensor is, and how often it was written to."""
    return [(each.data_ptr(), each._version) for each in _tensors(decoder)]


def _tensors(decoder: Decoder) -> Iterator[Tensor]:
    return itertools.chain(decoder.parameters(), decoder.buffers())


def _layers(decoder: Decoder, run: RunConfig) -> step.Layers:
    model, blocks = run.model, list(decoder.blocks)
    mixtures = [block for i, block in enumerate(blocks) if run.moe.is_moe_layer(i)]
    dense = [block for i, block in enumerate(blocks) if not run.moe.is_moe_layer(i)]
    place = np.array(
        [-1 - mixtures.index(block) if block in mixtures else dense.index(block) for block in blocks], np.int64
    )
    with_value = [block for i, block in enumerate(blocks) if model.has_value_embedding(i)]
    value = np.array([with_value.index(block) if block in with_value else -1 for block in blocks], np.int64)
    head, head_scale = _table(decoder, "embedding.weight" if model.tie_embeddings else "lm_head.weight")
    qkv = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    products: dict[str, NDArray[Any]] = {}
    empty = np.empty(0, head.dtype if head_scale.size else np.float32)  # so that there are few types to compile for
    for key, modules, names, dimensions in (
        ("qkv", blocks, [f"{name}.weight" for name in qkv], 3),
        ("out", blocks, ["attention.o_proj.weight"], 3),
        ("up", dense, ["ffn.gate_up_proj.weight"], 3),
        ("down", dense, ["ffn.down_proj.weight"], 3),
        ("expert_up", mixtures, ["ffn.experts.gate_up_proj"], 4),
        ("expert_down", mixtures, ["ffn.experts.down_proj"], 4),
    ):
        products[key], products[f"{key}_scale"] = _weights(modules, names, dimensions, empty)
    no_bias = np.empty((len(dense), 0), np.float32)
    no_expert_bias = np.empty((len(mixtures), run.moe.num_experts, 0), np.float32)
    return step.Layers(
        position=_NONE.reshape(0, 0)
        if decoder.position_embedding is None
        else _numbers(decoder.position_embedding.weight),
        head=head,
        head_scale=head_scale,
        first_norm=_norms(blocks, "attention_norm"),
        second_norm=_norms(blocks, "ffn_norm"),
        last_norm=_norms([decoder], "final_norm")[0],
        qkv_bias=_stacked(blocks, [f"{name}.bias" for name in qkv]) if model.bias else _NONE.reshape(0, 0),
        out_bias=_stacked(blocks, ["attention.o_proj.bias"]) if model.bias else _NONE.reshape(0, 0),
        head_norm=_head_norms(blocks) if model.qk_norm else _NONE.reshape(0, 0, 0),
        dense=place,
        up_bias=_stacked(dense, ["ffn.gate_up_proj.bias"], 2) if model.bias else no_bias,
        down_bias=_stacked(dense, ["ffn.down_proj.bias"], 2) if model.bias else no_bias,
        router=_stacked(mixtures, ["ffn.router.weight"], 3),
        expert_up_bias=_stacked(mixtures, ["ffn.experts.gate_up_bias"], 3) if model.bias else no_expert_bias,
        expert_down_bias=_stacked(mixtures, ["ffn.experts.down_bias"], 3) if model.bias else no_expert_bias,
        value=value,
        value_embedding=_stacked(with_value, ["attention.value_embedding.embedding.weight"], 3),
        value_gate=_stacked(with_value, ["attention.value_embedding.gate.weight"], 3),
        residual=_stacked(blocks, ["residual.scale"]) if model.residual_scales else _NONE.reshape(0, 0),
        cos=_NONE.reshape(0, 0),  # until a text begins
        sin=_NONE.reshape(0, 0),
        **products,
    )


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = tensor.detach().float().contiguous().numpy()
    return numbers


def _table(decoder: Decoder, name: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Values [V, ...] and scale of a matrix; the scale is empty if it is fp32."""
    held = held_quantized(decoder, name)
    if held is None:
        return _numbers(decoder.get_parameter(name)), _NONE.reshape(0, 0)
    return _signed(held.values), _numbers(held.scale)


def _weights(
    modules: Sequence[Any], names: Sequence[str], dimensions: int, empty: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Values [modules, rows, ...] and scale of matrices, joined along their rows; see _stack.

    If they are fp32, there is no scale for any row.
    """
    if not modules:
        return empty.reshape((0,) * dimensions), _NONE.reshape((0,) * dimensions)
    held = [[held_quantized(module, name) for name in names] for module in modules]
    quantized = [[each for each in row if each is not None] for row in held]
    if not quantized[0]:
        values = _stacked(modules, names)
        return values, np.empty((*values.shape[:-2], 0, 0), np.float32)
    stacks = (_stack([[each[part] for each in row] for row in quantized]) for part in (0, 1))
    return _signed(next(stacks)), _numbers(next(stacks))


def _signed(values: Tensor) -> NDArray[np.int8]:
    """Bytes as int8, even if they hold two numbers, so that there are few types to compile for."""
    numbers: NDArray[np.int8] = values.detach().contiguous().numpy().view(np.int8)
    return numbers


def _stacked(modules: Sequence[Any], names: Sequence[str], dimensions: int | None = None) -> NDArray[np.float32]:
    """[modules, rows, ...]: parameters of these names, joined along their rows; see _stack."""
    if not modules:
        return _NONE.reshape((0,) * (dimensions or 1))
    return _numbers(_stack([[module.get_parameter(name) for name in names] for module in modules]))


def _stack(parameters: Sequence[Sequence[Tensor]]) -> Tensor:
    """[rows of parameters, rows, ...]: each row joined; the parameters become views of it, one by one."""
    first = parameters[0][0]
    lengths = [len(parameter) for parameter in parameters[0]]
    stack = torch.empty((len(parameters), sum(lengths), *first.shape[1:]), dtype=first.dtype)
    for joined, row in zip(stack, parameters, strict=True):
        for parameter, part in zip(row, joined.split(lengths), strict=True):
            part.copy_(parameter.detach())
            parameter.data = part
    return stack


def _norms(modules: Sequence[Any], name: str) -> NDArray[np.float32]:
    """[modules, 2, D]: gain and bias (0 if there is none); the parameters become views of it."""
    norms = [getattr(module, name) for module in modules]
    first = norms[0].weight
    stack = torch.zeros((len(norms), 2, *first.shape), dtype=first.dtype)
    for joined, norm in zip(stack, norms, strict=True):
        for part, parameter in zip(joined, (norm.weight, getattr(norm, "bias", None)), strict=True):
            if parameter is not None:
                part.copy_(parameter.detach())
                parameter.data = part
    return _numbers(stack)


def _head_norms(blocks: Sequence[Any]) -> NDArray[np.float32]:
    """[blocks, 2, head size]: gains of queries and keys."""
    stack = _stacked(blocks, ["attention.q_norm.weight", "attention.k_norm.weight"])
    return stack.reshape(len(blocks), 2, -1)
