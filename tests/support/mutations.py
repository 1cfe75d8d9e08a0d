"""Wrong input by the thousands: values, structures and bytes that nobody would write on purpose, but somebody sends.

A small generator of our own: 10,000 configs take over two minutes with hypothesis, a quarter of a minute with this.
Everything is drawn from a random.Random, so that a seed determines the cases.
"""

import copy
import random
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 64, 2**31, 2**63, 2**70, 10**400),
    *(-0.5, 0.5, 1e-3, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "auto", "bpe", "cosine", "adamw", "zzz", "12", "1e-3", "none", "cpu", "nvme", "../x", "/etc/passwd", "~"),
    *("a\nb", "é" * 100, "x" * 5000, "\x00", "\x1b[2J", "\ud800", "\u202e", "{}", "%n", "$(id)", "-oProxyCommand=x"),
    *([], [1, "b"], ["x"], [[]], [None], {}, {"lr": 1}, {"x": {"y": [1]}}, {"": 1}, {"a\nb": 1}),
)
"""Values of every type that a YAML or JSON file can contain, with the ends of each range."""
INSERTED = (
    *(b"\x00", b"\xff", b"\x80", b"\n", b"\t", b" ", b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b":", b",", b"-", b"#"),
    *(b"&a ", b"*a", b"<<: ", b"!!int ", b"%", b"|", b">", b"?", b"---\n", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"1e999"),
)
"""Bytes that are meaningful to a parser, and bytes that are not text."""


def mutated_value(rng: random.Random, value: Any) -> Any:
    """A copy of a structure of dicts and lists, with one entry replaced, removed, renamed or duplicated."""
    root = [copy.deepcopy(value)]
    place: Any = root
    key: Any = 0
    # Descend into the structure and stop at some level.
    while (inner := place[key]) and isinstance(inner, dict | list) and rng.random() < 0.8:
        place, key = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    kind = rng.randrange(6)
    if kind == 0 and place is not root:
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[str(key) + rng.choice(("x", " ", "_", ".y", "\n"))] = place.pop(key)
    elif kind == 2 and isinstance(place, dict):
        place[rng.choice(list(place))] = copy.deepcopy(place[key])
    elif kind == 3 and isinstance(place[key], int | float):
        place[key] = rng.choice((-place[key], place[key] * 2, place[key] + 1, str(place[key]), [place[key]]))
    else:
        place[key] = copy.deepcopy(rng.choice(VALUES))
    return root[0]


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """A file with one to three bits flipped, or with pieces removed, duplicated, inserted or cut off."""
    result = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(result) + 1)
        end = min(len(result), at + rng.randint(1, 20))
        kind = rng.randrange(6)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del result[at:end]
        elif kind == 2:
            result[at:at] = result[at:end]
        elif kind == 3:
            result[at:at] = rng.choice(INSERTED)
        elif kind == 4:
            result[at:at] = rng.choice(INSERTED) * rng.choice((2, 50, 1000))
        elif rng.random() < 0.3:
            del result[at:]
    return bytes(result)


def put(path: Path, content: bytes) -> None:
    """Replace a file by a small new one; truncating it instead takes twenty times as long on ext4."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
