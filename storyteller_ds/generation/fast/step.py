"""The forward pass of the decoder in numba: loops over plain arrays, with the arithmetic of model/.

All compiled code is in this file: numba recompiles when it changes, but would not when another file does.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from storyteller_ds.generation.fast.instructions import add_one, float_of, let_others_run, now, prefetch

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Weights = NDArray[np.float32] | NDArray[np.int8]

_LOOKS = 1000
"""How many times a thread polls for the others before it yields its core: a few microseconds."""

compiled = partial(njit, fastmath=True, error_model="numpy")
"""Division is not checked: LLVM does not vectorize what may raise."""

VECTOR = 16
"""Numbers in the widest vector register of a processor."""

RMSNORM, LAYERNORM = 0, 1
SWIGLU, GELU, RELU, RELU2 = 0, 1, 2, 3


class Sizes(NamedTuple):
    """Sizes and options of a model."""

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
    """Weights, stacked over layers; arrays that a model does not need are empty.

    Weights of matrix products are fp32 with an empty scale, or quantized as in model/quantized.py, with bytes as int8.
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
    dense: Ids
    """[L]: index among the dense layers; for an MoE layer, -1 minus its index among the MoE layers."""
    up: Weights
    """[dense layers, H, D]."""
    up_scale: Floats
    up_bias: Floats
    down: Weights
    down_scale: Floats
    down_bias: Floats
    router: Floats
    """[MoE layers, E, D]."""
    expert_up: Weights
    """[MoE layers, E, H, D]."""
    expert_up_scale: Floats
    expert_up_bias: Floats
    expert_down: Weights
    expert_down_scale: Floats
    expert_down_bias: Floats
    value: Ids
    """[L]: index among the value embeddings; -1: the layer has none."""
    value_embedding: Floats
    """[value embeddings, V, kv_heads * head_dim]."""
    value_gate: Floats
    residual: Floats
    """[L, 2]."""
    cos: Floats
    """[T, head_dim / 2]; empty: no rotation."""
    sin: Floats


class Work(NamedTuple):
    """Memory for a step of N tokens, shared by its threads; M = N * top_k, or N if there is no MoE layer."""

    every: Ids
    """[N]: 0, 1, 2 and so on."""
    first: Floats
    """[N, D]: the residual stream before the first layer."""
    normal: Floats
    """[N, D]."""
    qkv: Floats
    """[N, (heads + 2 kv_heads) * head_dim]."""
    attended: Floats
    """[N, heads * head_dim]."""
    score: Floats
    """[threads, T]: attention scores of one head."""
    chosen: Ids
    """[N, top_k]: chosen experts."""
    gate: Floats
    """[N, top_k]: their gate weights."""
    hidden: Floats
    """[M * the largest H]."""
    act: Floats
    """[M * the largest I]."""
    branch: Floats
    """[M, D]."""


class Team(NamedTuple):
    """One of the threads that compute a step together; each does a part of every matrix product."""

    meetings: Ids
    """[2], shared: how many times threads have arrived at a meeting (barrier); whether one will never arrive."""
    thread: int
    threads: int


@compiled(inline="always")
def _meet(team, meeting):
    """Wait until all threads have arrived here; returns the number of the next meeting."""
    if team.threads > 1:
        add_one(team.meetings)
        looks = 0
        while now(team.meetings) < meeting * team.threads and not now(team.meetings[1:]):
            looks += 1
            if looks > _LOOKS:
                let_others_run()
    return meeting + 1


@compiled(inline="always")
def _part(count, team):
    """The range of `count` items that a thread handles."""
    return count * team.thread // team.threads, count * (team.thread + 1) // team.threads


@compiled(inline="always")
def _exp(x):
    """e^x with a relative error of 1e-7 (1 + |x|), from 1e-38 to 1e38; unlike numpy's, LLVM can vectorize it.

    2^y is a shift for the integer part of y, and a polynomial for the rest (Taylor's, about the middle).
    """
    y = min(max(x * np.float32(1.4426950408889634), np.float32(-126)), np.float32(126))
    whole = np.floor(y + np.float32(0.5))
    rest = (y - whole) * np.float32(0.6931471805599453)
    power = np.float32(1 / 5040)
    power = power * rest + np.float32(1 / 720)
    power = power * rest + np.float32(1 / 120)
    power = power * rest + np.float32(1 / 24)
    power = power * rest + np.float32(1 / 6)
    power = power * rest + np.float32(0.5)
    power = power * rest + np.float32(1)
    power = power * rest + np.float32(1)
    return power * float_of(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))


def _numbers(weight, scale, row, rows, scratch):
    """fp32 [rows, columns] of a weight, in scratch if it is quantized; see _numbers_of."""


@overload(_numbers)
def _numbers_of(weight, scale, row, rows, scratch):
    if weight.dtype == types.float32:
        return lambda weight, scale, row, rows, scratch: weight[row : row + rows]
    return _dequantized


def _dequantized(weight, scale, row, rows, scratch):
    groups, columns = scale.shape[1], scratch.shape[1]
    half = columns // groups // 2
    for i in range(rows):
        if weight.shape[1] == columns:
            for column in range(columns):
                scratch[i, column] = np.float32(weight[row + i, column]) * scale[row + i, 0]
        else:
            for group in range(groups):
                by, start = scale[row + i, group], 2 * half * group
                for j in range(half):
                    both = np.int32(np.uint8(weight[row + i, group * half + j]))
                    scratch[i, start + j] = np.float32((both & 15) - 8) * by
                    scratch[i, start + half + j] = np.float32((both >> 4) - 8) * by
    return scratch[:rows]


@compiled()
def _products(weight, scale, x, rows, out, begin, end):
    """out[n] = W x[rows[n]], only the output features from begin to end.

    Three rows of the weight by four of x: as many sums as fit into the registers of AVX2 along with their operands.
    """
    if rows.size == 1:
        _product(weight, scale, x[rows[0]], out[0], begin, end)
        return
    scratch = np.empty((3, x.shape[1]), np.float32)
    zero, line = np.float32(0), 64 // weight.itemsize
    for row in range(begin, end, 3):
        w = _numbers(weight, scale, row, min(3, end - row), scratch)
        if w.shape[0] < 3:
            for i in range(w.shape[0]):
                for n in range(rows.size):
                    total, a, b = zero, w[i], x[rows[n]]
                    for column in range(a.size):
                        total += a[column] * b[column]
                    out[n, row + i] = total
            break
        w0, w1, w2 = w[0], w[1], w[2]
        for ahead in range((row + 3) * weight.shape[1], (row + 6) * weight.shape[1], line):
            prefetch(weight, ahead)
        for n in range(0, rows.size - 3, 4):
            x0, x1, x2, x3 = x[rows[n]], x[rows[n + 1]], x[rows[n + 2]], x[rows[n + 3]]
            a00 = a01 = a02 = a10 = a11 = a12 = a20 = a21 = a22 = a30 = a31 = a32 = zero
            for column in range(w0.size):
                b0, b1, b2 = w0[column], w1[column], w2[column]
                a = x0[column]
                a00 += a * b0
                a01 += a * b1
                a02 += a * b2
                a = x1[column]
                a10 += a * b0
                a11 += a * b1
                a12 += a * b2
                a = x2[column]
                a20 += a * b0
                a21 += a * b1
                a22 += a * b2
                a = x3[column]
                a30 += a * b0
                a31 += a * b1
                a32 += a * b2
            out[n, row], out[n, row + 1], out[n, row + 2] = a00, a01, a02
            out[n + 1, row], out[n + 1, row + 1], out[n + 1, row + 2] = a10, a11, a12
            out[n + 2, row], out[n + 2, row + 1], out[n + 2, row + 2] = a20, a21, a22
            out[n + 3, row], out[n + 3, row + 1], out[n + 3, row + 2] = a30, a31, a32
        for n in range(rows.size // 4 * 4, rows.size):
            x0 = x[rows[n]]
            a00 = a01 = a02 = zero
            for column in range(w0.size):
                a = x0[column]
                a00 += a * w0[column]
                a01 += a * w1[column]
                a02 += a * w2[column]
            out[n, row], out[n, row + 1], out[n, row + 2] = a00, a01, a02


@compiled()
def _product(weight, scale, x, out, begin, end):
    """out = W x, only the output features from begin to end, without copying the weight."""
    columns = weight.shape[1]
    if columns < x.size:
        _product_4_bits(weight, scale, x, out, begin, end)
        return
    for row in range(begin, end):
        total = np.float32(0)
        for column in range(columns):
            total += np.float32(weight[row, column]) * x[column]
        out[row] = total * scale[row, 0] if scale.size else total


@compiled()
def _product_4_bits(weight, scale, x, out, begin, end):
    rows, groups = scale.shape
    half = weight.shape[1] // groups  # if it were a constant, LLVM would unroll the loops instead of vectorizing them
    byte, number = weight.reshape((rows, groups, half)), x.reshape((groups, 2, half))
    eight = np.empty(groups, np.float32)  # what adding 8 to each number in a group adds to the sum
    for group in range(groups):
        total = np.float32(0)
        for i in range(half):
            total += number[group, 0, i] + number[group, 1, i]
        eight[group] = np.float32(8) * total
    for row in range(begin, end):
        total = np.float32(0)
        for group in range(groups):
            part = np.float32(0)
            for i in range(half):
                both = np.int32(np.uint8(byte[row, group, i]))
                part += np.float32(both & 15) * number[group, 0, i] + np.float32(both >> 4) * number[group, 1, i]
            total += (part - eight[group]) * scale[row, group]
        out[row] = total


@compiled(inline="always")
def _add(out, bias):
    for i in range(bias.size):
        out[i] += bias[i]


@compiled(inline="always")
def _rms(x, gain, eps, out):
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    scale = np.float32(1) / np.sqrt(total / np.float32(x.size) + np.float32(eps))
    for i in range(x.size):
        out[i] = x[i] * scale * gain[i]


@compiled(inline="always")
def _normalize(x, gain_and_bias, kind, eps, out):
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


@compiled(cache=True, nogil=True)
def decode(token, slot, position, wanted, x, sizes, layers, keys, values, work, logits, team):
    """One thread's part of computing the logits after tokens, which may be of one text, of several, or both.

    Args:
        token: [N], ids.
        slot: [N]: the text that each token belongs to.
        position: [N]: position of each token in its text; keys and values of earlier positions exist, or are computed
            in this step.
        wanted: [W]: the tokens whose logits are wanted.
        x: [N, D], embeddings of the tokens, overwritten.
        sizes: Sizes.
        layers: Layers.
        keys: [L, texts, kv_heads, head_dim, T]; those of the tokens are added; T is a multiple of VECTOR.
        values: likewise, and finite.
        work: Work.
        logits: [W, V], written.
        team: Team.
    """
    depth, (tokens, features) = layers.first_norm.shape[0], x.shape
    begin, end = _part(tokens, team)
    meeting = 1
    for n in range(begin, end):
        if layers.position.size:
            _add(x[n], layers.position[position[n]])
        if layers.residual.size:
            work.first[n] = x[n]
    for layer in range(depth):
        for n in range(begin, end):
            if layers.residual.size:
                of_stream, of_first = layers.residual[layer, 0], layers.residual[layer, 1]
                for i in range(features):
                    x[n, i] = of_stream * x[n, i] + of_first * work.first[n, i]
            _normalize(x[n], layers.first_norm[layer], sizes.norm, sizes.eps, work.normal[n])
        meeting = _meet(team, meeting)
        first, last = _part(layers.qkv.shape[1], team)
        _products(layers.qkv[layer], layers.qkv_scale[layer], work.normal, work.every, work.qkv, first, last)
        meeting = _meet(team, meeting)
        for n in range(begin, end):
            _finish_qkv(layer, token[n], position[n], work.normal[n], sizes, layers, work.qkv[n])
            for head in range(sizes.kv_heads):
                at = (sizes.heads + head) * sizes.head_dim
                for i in range(sizes.head_dim):
                    keys[layer, slot[n], head, i, position[n]] = work.qkv[n, at + i]
                    values[layer, slot[n], head, i, position[n]] = work.qkv[n, at + sizes.kv_heads * sizes.head_dim + i]
        meeting = _meet(team, meeting)
        for n in range(team.thread, tokens, team.threads):  # later tokens of a text have more to attend to
            for head in range(sizes.heads):
                kv, at = head // (sizes.heads // sizes.kv_heads), head * sizes.head_dim
                _attend(
                    work.qkv[n, at : at + sizes.head_dim],
                    keys[layer, slot[n], kv],
                    values[layer, slot[n], kv],
                    work.score[team.thread],
                    position[n] + 1,
                    work.attended[n, at : at + sizes.head_dim],
                )
        meeting = _meet(team, meeting)
        first, last = _part(features, team)
        _products(layers.out[layer], layers.out_scale[layer], work.attended, work.every, work.branch, first, last)
        meeting = _meet(team, meeting)
        place = layers.dense[layer]
        for n in range(begin, end):
            if layers.out_bias.size:
                _add(work.branch[n], layers.out_bias[layer])
            _add(x[n], work.branch[n])
            _normalize(x[n], layers.second_norm[layer], sizes.norm, sizes.eps, work.normal[n])
            if place < 0:
                _route(layers.router[-1 - place], work.normal[n], work.chosen[n], work.gate[n])
            else:
                work.chosen[n, 0], work.gate[n, 0] = 0, 1
        meeting = _meet(team, meeting)
        meeting = _feed_forward(layer, sizes, layers, work, x, team, meeting)
        meeting = _meet(team, meeting)
    begin, end = _part(wanted.size, team)
    for n in range(begin, end):
        _normalize(x[wanted[n]], layers.last_norm, sizes.norm, sizes.eps, work.normal[n])
    meeting = _meet(team, meeting)
    first, last = _part(logits.shape[1], team)
    _products(layers.head, layers.head_scale, work.normal, work.every[: wanted.size], logits, first, last)
    if sizes.softcap > 0:
        cap = np.float32(sizes.softcap)
        for n in range(wanted.size):
            for i in range(first, last):
                logits[n, i] = cap * np.tanh(logits[n, i] / cap)


@compiled()
def _finish_qkv(layer, token, position, normal, sizes, layers, qkv):
    """Apply bias, value embedding, norms and rotation to a token's queries, keys and values."""
    heads, kv_heads, width = sizes.heads, sizes.kv_heads, sizes.head_dim
    half = width // 2
    if layers.qkv_bias.size:
        _add(qkv, layers.qkv_bias[layer])
    place = layers.value[layer]
    if place >= 0:
        for head in range(kv_heads):
            gate = np.float32(0)
            for i in range(sizes.value_gate_inputs):
                gate += layers.value_gate[place, head, i] * normal[i]
            gate = np.float32(2) / (np.float32(1) + _exp(-gate))
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


@compiled()
def _attend(query, keys, values, score, length, out):
    """One head: query [head_dim], keys and values [head_dim, T], out [head_dim].

    Loops cover whole vectors, and so go past the length of the text, where the numbers are meaningless.

    Args:
        query: fp32.
        keys: T is a multiple of VECTOR, as it is for values and score.
        values: finite.
        score: [T], overwritten.
        length: number of positions of the text.
        out: written.
    """
    zero = np.float32(0)
    width, filled = query.size, (length + VECTOR - 1) // VECTOR * VECTOR
    scale = np.float32(1) / np.sqrt(np.float32(width))
    score = score[:filled]
    score[:] = zero
    for i in range(0, width - 3, 4):  # four rows at a time: sums go to memory a quarter as often
        k0, k1, k2, k3 = keys[i], keys[i + 1], keys[i + 2], keys[i + 3]
        q0, q1, q2, q3 = query[i] * scale, query[i + 1] * scale, query[i + 2] * scale, query[i + 3] * scale
        for t in range(filled):
            score[t] += q0 * k0[t] + q1 * k1[t] + q2 * k2[t] + q3 * k3[t]
    for i in range(width // 4 * 4, width):
        for t in range(filled):
            score[t] += query[i] * scale * keys[i, t]
    score[length:] = score[0]
    largest = score[0]
    for t in range(filled):
        largest = max(largest, score[t])
    for t in range(filled):
        score[t] = _exp(score[t] - largest)
    score[length:] = zero
    mass = zero
    for t in range(filled):
        mass += score[t]
    for i in range(0, width - 3, 4):
        v0, v1, v2, v3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        a0 = a1 = a2 = a3 = zero
        for t in range(filled):
            part = score[t]
            a0 += part * v0[t]
            a1 += part * v1[t]
            a2 += part * v2[t]
            a3 += part * v3[t]
        out[i], out[i + 1], out[i + 2], out[i + 3] = a0 / mass, a1 / mass, a2 / mass, a3 / mass
    for i in range(width // 4 * 4, width):
        total = zero
        for t in range(filled):
            total += score[t] * values[i, t]
        out[i] = total / mass


@compiled()
def _route(router, normal, chosen, gate):
    """The experts of a token and their gate weights."""
    experts = router.shape[0]
    prob = np.empty(experts, np.float32)
    _product(router, np.empty((0, 0), np.float32), normal, prob, 0, experts)
    largest = prob.max()
    for e in range(experts):
        prob[e] = _exp(prob[e] - largest)
    mass = np.float32(0)
    for k in range(chosen.size):
        best = 0
        for e in range(1, experts):  # of equal ones, the lower index
            if prob[e] > prob[best]:
                best = e
        chosen[k], gate[k] = best, prob[best]
        mass += prob[best]
        prob[best] = np.float32(-1)
    for k in range(chosen.size):
        gate[k] /= mass


@compiled(inline="always")
def _activate(hidden, kind, act, begin, end):
    """From hidden [H] to act [I], only the elements of act from begin to end."""
    gate, up, act = (
        hidden[begin:end],
        hidden[hidden.size - act.size + begin : hidden.size - act.size + end],
        act[begin:end],
    )
    if kind == SWIGLU:
        for i in range(act.size):
            act[i] = gate[i] / (np.float32(1) + _exp(-gate[i])) * up[i]
    elif kind == GELU:
        for i in range(act.size):
            inner = np.float32(0.7978845608028654) * (gate[i] + np.float32(0.044715) * gate[i] * gate[i] * gate[i])
            act[i] = gate[i] - gate[i] / (np.float32(1) + _exp(inner + inner))  # tanh(a) is 1 - 2 / (1 + e^2a)
    else:
        for i in range(act.size):
            positive = max(gate[i], np.float32(0))
            act[i] = positive * positive if kind == RELU2 else positive


@compiled()
def _feed_forward(layer, sizes, layers, work, x, team, meeting):
    """Add the output of a layer's FFN or experts to x [N, D]; returns the number of the next meeting."""
    place = layers.dense[layer]
    is_dense = place >= 0
    if is_dense:  # a single expert that all tokens go to
        up, up_scale, up_bias = (
            layers.up[place : place + 1],
            layers.up_scale[place : place + 1],
            layers.up_bias[place : place + 1],
        )
        down, down_scale = layers.down[place : place + 1], layers.down_scale[place : place + 1]
        down_bias = layers.down_bias[place : place + 1]
    else:
        place = -1 - place
        up, up_scale, up_bias = layers.expert_up[place], layers.expert_up_scale[place], layers.expert_up_bias[place]
        down, down_scale = layers.expert_down[place], layers.expert_down_scale[place]
        down_bias = layers.expert_down_bias[place]
    experts, wide = up.shape[:2]
    inner = wide // 2 if sizes.activation == SWIGLU else wide
    tokens, features = x.shape
    chosen = work.chosen[:tokens, : 1 if is_dense else sizes.top_k]
    start = np.zeros(experts + 1, np.int64)
    for n in range(tokens):
        for k in range(chosen.shape[1]):
            start[chosen[n, k] + 1] += 1
    for e in range(experts):
        start[e + 1] += start[e]
    filled = start.copy()
    row = np.empty(chosen.size, np.int64)  # the token of each row, sorted by expert
    at = np.empty(chosen.shape, np.int64)
    for n in range(tokens):
        for k in range(chosen.shape[1]):
            e = chosen[n, k]
            at[n, k] = filled[e]
            row[filled[e]] = n
            filled[e] += 1
    hidden = work.hidden[: row.size * wide].reshape((row.size, wide))
    act = work.act[: row.size * inner].reshape((row.size, inner))
    begin, end = _part(inner, team)
    for e in range(experts):
        of = slice(start[e], start[e + 1])
        if start[e] == start[e + 1]:
            continue
        _products(up[e], up_scale[e], work.normal, row[of], hidden[of], begin, end)
        if sizes.activation == SWIGLU:
            _products(up[e], up_scale[e], work.normal, row[of], hidden[of], inner + begin, inner + end)
        for n in range(start[e], start[e + 1]):
            if up_bias.size:
                for i in range(begin, end):
                    hidden[n, i] += up_bias[e, i]
                    if sizes.activation == SWIGLU:
                        hidden[n, inner + i] += up_bias[e, inner + i]
            _activate(hidden[n], sizes.activation, act[n], begin, end)
    meeting = _meet(team, meeting)
    begin, end = _part(features, team)
    for e in range(experts):
        of = slice(start[e], start[e + 1])
        if start[e] == start[e + 1]:
            continue
        _products(down[e], down_scale[e], act[of], work.every[: start[e + 1] - start[e]], work.branch[of], begin, end)
        if down_bias.size:
            for n in range(start[e], start[e + 1]):
                for i in range(begin, end):
                    work.branch[n, i] += down_bias[e, i]
    for n in range(tokens):
        for k in range(chosen.shape[1]):
            part = work.gate[n, k]
            for i in range(begin, end):
                x[n, i] += part * work.branch[at[n, k], i]
    return meeting
