"""How llama2.c reads model.bin, and its forward pass, in plain NumPy and fp64."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def read(path: Path) -> tuple[dict[str, int], dict[str, Array]]:
    """Sizes and weights; the weights of all layers are one array."""
    content = path.read_bytes()
    magic, version = struct.unpack_from("<Ii", content)
    place, group = 28, 0
    numbers = struct.unpack_from("<7i", content)
    tied = numbers[5] > 0
    if magic == 0x616B3432:
        numbers = struct.unpack_from("<7i", content, 8)
        tied, group = bool(content[36]), struct.unpack_from("<i", content, 37)[0]
        place = 256
    else:
        version = 0
    dim, hidden, layers, heads, kv_heads, vocabulary, context = numbers
    vocabulary = abs(vocabulary)
    head = dim // heads
    shapes = {
        "embedding": (vocabulary, dim),
        "att_norm": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv_heads * head, dim),
        "wv": (layers, kv_heads * head, dim),
        "wo": (layers, dim, dim),
        "ffn_norm": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "norm": (dim,),
        "cos": (context, head // 2),
        "sin": (context, head // 2),
        "output": (vocabulary, dim),
    }
    order = list(shapes)
    if version:
        order = ["att_norm", "ffn_norm", "norm", "embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "output"]
    weights = {}
    for name in order[:-1] if tied else order:
        count = int(np.prod(shapes[name]))
        if version == 2 and "norm" not in name:
            each = shapes[name] if name in ("embedding", "output") else shapes[name][1:]
            parts = []
            for _ in range(count // int(np.prod(each))):
                size = int(np.prod(each))
                whole = np.frombuffer(content, "i1", size, place).reshape(-1, group).astype(float)
                scale = np.frombuffer(content, "<f4", size // group, place + size).astype(float)
                parts.append((whole * scale[:, None]).reshape(each))
                place += size + 4 * size // group
            weights[name] = np.stack(parts).reshape(shapes[name])
        else:
            weights[name] = np.frombuffer(content, "<f4", count, place).reshape(shapes[name])
            place += 4 * count
    assert place == len(content)
    weights.setdefault("output", weights["embedding"])
    sizes = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "head": head, "version": version, "group": group}
    return sizes, weights


def logits(path: Path, ids: list[int]) -> Array:
    """Logits [len(ids), V] of run.c's forward pass."""
    sizes, weights = read(path)
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    heads, kv_heads, head = sizes["heads"], sizes["kv_heads"], sizes["head"]

    def norm(x: Array, gain: Array) -> Array:
        return gain * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)

    def rotated(x: Array) -> Array:  # [S, heads, head]; adjacent entries form a pair
        angle = np.arange(len(ids))[:, None] * 10000.0 ** (-np.arange(0, head, 2) / head)
        turn = np.exp(1j * angle)[:, None]
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)

    x = w["embedding"][ids]
    for layer in range(sizes["layers"]):
        h = norm(x, w["att_norm"][layer])
        q = rotated((h @ w["wq"][layer].T).reshape(-1, heads, head))
        k = rotated((h @ w["wk"][layer].T).reshape(-1, kv_heads, head)).repeat(heads // kv_heads, axis=1)
        v = (h @ w["wv"][layer].T).reshape(-1, kv_heads, head).repeat(heads // kv_heads, axis=1)
        scores = np.einsum("shd,thd->hst", q, k) / np.sqrt(head)
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        attention = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attention /= attention.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hst,thd->shd", attention, v).reshape(x.shape) @ w["wo"][layer].T
        h = norm(x, w["ffn_norm"][layer])
        gate = h @ w["w1"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][layer].T)) @ w["w2"][layer].T
    return norm(x, w["norm"]) @ w["output"].T
