"""A decoder's weights, laid out for step.py, and generation with them."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.generation.decode import CACHED_AT_FIRST
from storyteller_ds.generation.fast import step
from storyteller_ds.model.attention import ValueEmbedding
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.quantized import held_quantized

_NONE = np.empty(0, np.float32)
_ACTIVATIONS = {"swiglu": step.SWIGLU, "gelu": step.GELU, "relu": step.RELU, "relu2": step.RELU2}


class PackedDecoder:
    """A decoder that generates on the CPU at batch 1: prompts by torch, each token after them by step.decode.

    Args:
        decoder: on the CPU, fp32 or held quantised, in eval mode. Its parameters become views of stacks over all
            layers, so that nothing is in memory twice.
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
        self._embedding, self._embedding_scale = _table(decoder, "embedding.weight")
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
        shape = (model.num_layers, model.kv_heads, 0, model.head_dim)
        self._keys = self._values = np.empty(shape, np.float32)
        self._grow(min(length, len(prompt) + CACHED_AT_FIRST))
        caches = [
            _Shared(*(torch.from_numpy(all_of[layer]) for all_of in (self._keys, self._values)))
            for layer in range(model.num_layers)
        ]
        logits_BSV, _ = self.decoder(torch.tensor([list(prompt)]), caches, 0)
        self._position = len(prompt)
        self.logits[:] = logits_BSV[0, -1].numpy()
        return torch.from_numpy(self.logits)

    def step(self, token: int) -> Tensor:
        """See Stepper."""
        if self._position == self._keys.shape[2]:  # machine code would write beyond it
            self._grow(2 * self._position)
        row = self._embedding[token]
        x = row * self._embedding_scale[token] if self._embedding_scale.size else row.copy()
        step.decode(token, x, self._position, self.sizes, self.layers, self._keys, self._values, self.logits)
        self._position += 1
        return torch.from_numpy(self.logits)

    def _grow(self, positions: int) -> None:
        """Make room for keys, values and angles of so many positions."""
        kept = self._keys.shape[2]
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            new = np.zeros((*old.shape[:2], positions, old.shape[3]), np.float32)
            new[:, :, :kept] = old
            setattr(self, name, new)
        if self.decoder.rotary is not None:
            angles = self.decoder.rotary(torch.arange(positions))
            cos, sin = (_numbers(table[:, : self.run.model.head_dim // 2]) for table in angles)
            self.layers = self.layers._replace(cos=cos, sin=sin)


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
        up_bias=_stacked(dense, ["ffn.gate_up_proj.bias"], 2) if model.bias else _NONE.reshape(0, 0),
        down_bias=_stacked(dense, ["ffn.down_proj.bias"], 2) if model.bias else _NONE.reshape(0, 0),
        router=_stacked(mixtures, ["ffn.router.weight"], 3),
        expert_up_bias=_stacked(mixtures, ["ffn.experts.gate_up_bias"], 3) if model.bias else _NONE.reshape(0, 0, 0),
        expert_down_bias=_stacked(mixtures, ["ffn.experts.down_bias"], 3) if model.bias else _NONE.reshape(0, 0, 0),
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
    """Values [V, ...] and scale of a matrix, the latter empty where it is fp32."""
    held = held_quantized(decoder, name)
    if held is None:
        return _numbers(decoder.get_parameter(name)), _NONE.reshape(0, 0)
    return _signed(held.values), _numbers(held.scale)


def _weights(
    modules: Sequence[Any], names: Sequence[str], dimensions: int, empty: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Values [modules, rows, ...] and scale of matrices, joined along their rows; see _stack.

    Where they are fp32, there is no scale for any row.
    """
    if not modules:
        return empty.reshape((0,) * dimensions), _NONE.reshape((0,) * dimensions)
    held = [[held_quantized(module, name) for name in names] for module in modules]
    quantised = [[each for each in row if each is not None] for row in held]
    if not quantised[0]:
        values = _stacked(modules, names)
        return values, np.empty((*values.shape[:-2], 0, 0), np.float32)
    stacks = (_stack([[each[part] for each in row] for row in quantised]) for part in (0, 1))
    return _signed(next(stacks)), _numbers(next(stacks))


def _signed(values: Tensor) -> NDArray[np.int8]:
    """Bytes as int8, also those that hold two numbers: see _weights on types."""
    numbers: NDArray[np.int8] = values.detach().contiguous().numpy().view(np.int8)
    return numbers


def _stacked(modules: Sequence[Any], names: Sequence[str], dimensions: int | None = None) -> NDArray[np.float32]:
    """[modules, rows, ...]: parameters of these names, joined along their rows; see _stack."""
    if not modules:
        return _NONE.reshape((0,) * (dimensions or 1))
    return _numbers(_stack([[module.get_parameter(name) for name in names] for module in modules]))


def _stack(parameters: Sequence[Sequence[Tensor]]) -> Tensor:
    """[rows of parameters, rows, ...]: each row joined; the parameters become views of it, one after the other."""
    first = parameters[0][0]
    lengths = [len(parameter) for parameter in parameters[0]]
    stack = torch.empty((len(parameters), sum(lengths), *first.shape[1:]), dtype=first.dtype)
    for joined, row in zip(stack, parameters, strict=True):
        for parameter, part in zip(row, joined.split(lengths), strict=True):
            part.copy_(parameter.detach())
            parameter.data = part
    return stack


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
