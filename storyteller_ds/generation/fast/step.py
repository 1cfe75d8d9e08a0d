"""One token through the decoder, in numba. Loops over plain arrays, with the arithmetic of model/."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Weights = NDArray[np.float32] | NDArray[np.int8]

RMSNORM, LAYERNORM = 0, 1
SWIGLU, GELU, RELU, RELU2 = 0, 1, 2, 3


class Sizes(NamedTuple):
    """What a model is."""

    heads: int
    kv_heads: int
    head_dim: int
    top_k: int
    norm: int
    activation: int
    value_gate_inputs: int
    """Features that the gate of a value embedding sees."""
    eps: float
    softcap: float
    """0: none."""


class Layers(NamedTuple):
    """Weights, stacked over layers; arrays of what a model has not are empty.

    Those of products are fp32 with an empty scale, or as in model/quantized.py with bytes as int8.
    """

    position: Floats
    """[T, D], learned."""
    head: Weights
    head_scale: Floats
    first_norm: Floats
    """[L, 2, D]: gain and bias before attention."""
    second_norm: Floats
    last_norm: Floats
    """[2, D]."""
    qkv: Weights
    """[L, (heads + 2 kv_heads) * head_dim, D]."""
    qkv_scale: Floats
    """[L, rows, groups], as for all that follow."""
    qkv_bias: Floats
    out: Weights
    out_scale: Floats
    out_bias: Floats
    head_norm: Floats
    """[L, 2, head_dim]: gains of queries and keys."""
    dense: NDArray[np.int64]
    """[L]: place among the dense layers; of a mixture -1 minus its place among those."""
    up: Weights
    """[dense layers, H, D]."""
    up_scale: Floats
    up_bias: Floats
    down: Weights
    down_scale: Floats
    down_bias: Floats
    router: Floats
    """[mixtures, E, D]."""
    expert_up: Weights
    """[mixtures, E, H, D]."""
    expert_up_scale: Floats
    expert_up_bias: Floats
    expert_down: Weights
    expert_down_scale: Floats
    expert_down_bias: Floats
    value: NDArray[np.int64]
    """[L]: place among the value embeddings; -1: it has none."""
    value_embedding: Floats
    """[value embeddings, V, kv_heads * head_dim]."""
    value_gate: Floats
    residual: Floats
    """[L, 2]."""
    cos: Floats
    """[T, head_dim / 2]; empty: no rotation."""
    sin: Floats


@njit(fastmath=True)
def _product(weight, scale, x, out):
    """out = W x."""
    rows, columns = weight.shape
    if columns < x.size:
        _product_4_bits(weight, scale, x, out)
        return
    for row in range(rows):
        total = np.float32(0)
        for column in range(columns):
            total += np.float32(weight[row, column]) * x[column]
        out[row] = total * scale[row, 0] if scale.size else total


@njit(fastmath=True)
def _product_4_bits(weight, scale, x, out):
    rows, groups = scale.shape
    half = weight.shape[1] // groups  # were it a constant, LLVM would unroll the loops in place of using vectors
    byte, number = weight.reshape((rows, groups, half)), x.reshape((groups, 2, half))
    eight = np.empty(groups, np.float32)  # what adding 8 to each number in a group adds to the sum
    for group in range(groups):
        total = np.float32(0)
        for i in range(half):
            total += number[group, 0, i] + number[group, 1, i]
        eight[group] = np.float32(8) * total
    for row in range(rows):
        total = np.float32(0)
        for group in range(groups):
            part = np.float32(0)
            for i in range(half):
                both = np.int32(np.uint8(byte[row, group, i]))
                part += np.float32(both & 15) * number[group, 0, i] + np.float32(both >> 4) * number[group, 1, i]
            total += (part - eight[group]) * scale[row, group]
        out[row] = total


@njit(fastmath=True, inline="always")
def _add(out, bias):
    for i in range(bias.size):
        out[i] += bias[i]


@njit(fastmath=True, inline="always")
def _rms(x, gain, eps, out):
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    scale = np.float32(1) / np.sqrt(total / np.float32(x.size) + np.float32(eps))
    for i in range(x.size):
        out[i] = x[i] * scale * gain[i]


@njit(fastmath=True, inline="always")
def _normalise(x, gain_and_bias, kind, eps, out):
    if kind == RMSNORM:
        _rms(x, gain_and_bias[0], eps, out)
        return
    mean = np.float32(0)
    for i in range(x.size):
        mean += x[i]
    mean /= np.float32(x.size)
    total = np.float32(0)
    for i in range(x.size):
        total += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / np.sqrt(total / np.float32(x.size) + np.float32(eps))
    for i in range(x.size):
        out[i] = (x[i] - mean) * scale * gain_and_bias[0, i] + gain_and_bias[1, i]


@njit(inline="always")
def _activated(hidden, kind):
    """Features behind the activation."""
    return hidden // 2 if kind == SWIGLU else hidden


@njit(fastmath=True, inline="always")
def _activate(hidden, kind, out):
    """hidden [H] to out [I]."""
    for i in range(out.size):
        value = hidden[i]
        if kind == SWIGLU:
            out[i] = value / (np.float32(1) + np.exp(-value)) * hidden[out.size + i]
        elif kind == GELU:
            inner = np.float32(0.7978845608028654) * (value + np.float32(0.044715) * value * value * value)
            out[i] = np.float32(0.5) * value * (np.float32(1) + np.tanh(inner))
        else:
            positive = max(value, np.float32(0))
            out[i] = positive * positive if kind == RELU2 else positive


@njit(fastmath=True, cache=True, nogil=True)
def decode(token, x, position, sizes, layers, keys, values, logits):
    """The logits of the token behind one token.

    Args:
        token: id.
        x: [D], its embedding, overwritten.
        position: of the token; keys and values of those before it are there.
        sizes: Sizes.
        layers: Layers.
        keys: [L, kv_heads, T, head_dim]; gets the token's.
        values: likewise.
        logits: [V], written.
    """
    heads, kv_heads, width = sizes.heads, sizes.kv_heads, sizes.head_dim
    depth, features = layers.first_norm.shape[0], x.size
    if layers.position.size:
        _add(x, layers.position[position])
    first = x.copy()
    normal = np.empty(features, np.float32)
    qkv = np.empty((heads + 2 * kv_heads) * width, np.float32)
    attended = np.empty(heads * width, np.float32)
    branch = np.empty(features, np.float32)
    score = np.empty(position + 1, np.float32)
    half = width // 2
    for layer in range(depth):
        if layers.residual.size:
            of_stream, of_first = layers.residual[layer, 0], layers.residual[layer, 1]
            for i in range(features):
                x[i] = of_stream * x[i] + of_first * first[i]
        _normalise(x, layers.first_norm[layer], sizes.norm, sizes.eps, normal)
        _product(layers.qkv[layer], layers.qkv_scale[layer], normal, qkv)
        if layers.qkv_bias.size:
            _add(qkv, layers.qkv_bias[layer])
        place = layers.value[layer]
        if place >= 0:
            for head in range(kv_heads):
                gate = np.float32(0)
                for i in range(sizes.value_gate_inputs):
                    gate += layers.value_gate[place, head, i] * normal[i]
                gate = np.float32(2) / (np.float32(1) + np.exp(-gate))
                begin = (heads + kv_heads + head) * width
                for i in range(width):
                    qkv[begin + i] += gate * layers.value_embedding[place, token, head * width + i]
        for head in range(heads + kv_heads):
            one = qkv[head * width : (head + 1) * width]
            if layers.head_norm.size:
                _rms(one, layers.head_norm[layer, 0 if head < heads else 1], sizes.eps, one)
            if layers.cos.size:
                for i in range(half):
                    cos, sin = layers.cos[position, i], layers.sin[position, i]
                    low, high = one[i], one[i + half]
                    one[i] = low * cos - high * sin
                    one[i + half] = high * cos + low * sin
        for head in range(kv_heads):
            for i in range(width):
                keys[layer, head, position, i] = qkv[(heads + head) * width + i]
                values[layer, head, position, i] = qkv[(heads + kv_heads + head) * width + i]
        _attend(qkv, keys[layer], values[layer], position, sizes, score, attended)
        _product(layers.out[layer], layers.out_scale[layer], attended, branch)
        if layers.out_bias.size:
            _add(branch, layers.out_bias[layer])
        _add(x, branch)
        _normalise(x, layers.second_norm[layer], sizes.norm, sizes.eps, normal)
        _feed_forward(layer, normal, sizes, layers, branch)
        _add(x, branch)
    _normalise(x, layers.last_norm, sizes.norm, sizes.eps, normal)
    _product(layers.head, layers.head_scale, normal, logits)
    if sizes.softcap > 0:
        cap = np.float32(sizes.softcap)
        for i in range(logits.size):
            logits[i] = cap * np.tanh(logits[i] / cap)


@njit(fastmath=True)
def _attend(qkv, keys, values, position, sizes, score, attended):
    width, shared = sizes.head_dim, sizes.heads // sizes.kv_heads
    scale = np.float32(1) / np.sqrt(np.float32(width))
    for head in range(sizes.heads):
        query, kv = qkv[head * width : (head + 1) * width], head // shared
        largest = np.float32(-np.inf)
        for t in range(position + 1):
            total = np.float32(0)
            for i in range(width):
                total += query[i] * keys[kv, t, i]
            total *= scale
            score[t] = total
            largest = max(largest, total)
        mass = np.float32(0)
        for t in range(position + 1):
            score[t] = np.exp(score[t] - largest)
            mass += score[t]
        out = attended[head * width : (head + 1) * width]
        out[:] = np.float32(0)
        for t in range(position + 1):
            part = score[t] / mass
            for i in range(width):
                out[i] += part * values[kv, t, i]


@njit(fastmath=True)
def _feed_forward(layer, normal, sizes, layers, out):
    place = layers.dense[layer]
    if place >= 0:
        hidden = np.empty(layers.up.shape[1], np.float32)
        act = np.empty(_activated(hidden.size, sizes.activation), np.float32)
        _product(layers.up[place], layers.up_scale[place], normal, hidden)
        if layers.up_bias.size:
            _add(hidden, layers.up_bias[place])
        _activate(hidden, sizes.activation, act)
        _product(layers.down[place], layers.down_scale[place], act, out)
        if layers.down_bias.size:
            _add(out, layers.down_bias[place])
        return
    place = -1 - place
    experts = layers.router.shape[1]
    hidden = np.empty(layers.expert_up.shape[2], np.float32)
    act = np.empty(_activated(hidden.size, sizes.activation), np.float32)
    one = np.empty(out.size, np.float32)
    prob = np.empty(experts, np.float32)
    _product(layers.router[place], np.empty((0, 0), np.float32), normal, prob)
    largest = prob.max()
    for e in range(experts):
        prob[e] = np.exp(prob[e] - largest)
    chosen = np.empty(sizes.top_k, np.int64)
    gate = np.empty(sizes.top_k, np.float32)
    mass = np.float32(0)
    for k in range(sizes.top_k):
        best = 0
        for e in range(1, experts):  # of equal ones the lower index
            if prob[e] > prob[best]:
                best = e
        chosen[k], gate[k] = best, prob[best]
        mass += prob[best]
        prob[best] = np.float32(-1)
    out[:] = np.float32(0)
    for k in range(sizes.top_k):
        e = chosen[k]
        _product(layers.expert_up[place, e], layers.expert_up_scale[place, e], normal, hidden)
        if layers.expert_up_bias.size:
            _add(hidden, layers.expert_up_bias[place, e])
        _activate(hidden, sizes.activation, act)
        _product(layers.expert_down[place, e], layers.expert_down_scale[place, e], act, one)
        if layers.expert_down_bias.size:
            _add(one, layers.expert_down_bias[place, e])
        weight = gate[k] / mass
        for i in range(out.size):
            out[i] += weight * one[i]
