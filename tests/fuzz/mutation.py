"""Mutations of good cases: values of another type or size, and random bytes."""

import random
from collections.abc import Callable
from typing import Any

MAX_CASE_BYTES = 200_000

NUMBERS = (
    *(-1, 0, 1, 2, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1),
    *(2**62 - 1, 2**62, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1),
    *(10**22, 10**300),
)

TEXTS = (
    *("", " ", "0", "-1", "1e9", "true", "null", "~", ".inf", "\0", "a\0b", "\n", "\r\n", "\t"),
    *('"', "\\", '\\"', "\\n", "'", "é" * 24, "\u202e", "\ufeff", "\U0001f600", "\x7f", "\x85"),
    *("x" * 47, "x" * 48, "x" * 49, "x" * 1023, "x" * 1024, "x" * 1025, "é" * 512, "é" * 513),
    *('"' * 1024, "\\" * 513, "x" * 70_000),
    *('x"} 1\nskyfast_up{analyzer="', "# HELP x y\n# TYPE x counter\nx 1\n", "<script>", "%s%n"),
    *("10.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1", "999.1.1.1", "0/0", "../../etc/passwd"),
    *("other", "direction", "__name__", "le", "\u2028", "a" * 64 + ":1"),
)

BYTES = (
    *(b"\xff", b"\xfe\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf"),
    *(b"\0", b"\n", b"\r", b"\x1b[31m", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"  "),
)


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return ``data`` with random changes that ignore its format."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 8, 64, 1000)))
        match rng.randrange(8):
            case 0:
                data = data[:start]
            case 1:
                data = data[start:]
            case 2:
                data = data[:start] + rng.choice(BYTES) + data[start:]
            case 3:
                data = data[:start] + data[end:]
            case 4:
                data = data[:start] + data[start:end] * rng.choice((2, 3, 50)) + data[end:]
            case 5:
                random_bytes = bytes(rng.randrange(256) for _ in range(end - start))
                data = data[:start] + random_bytes + data[end:]
            case 6:
                other = rng.randrange(len(data) + 1)
                data = data[:start] + data[other : other + (end - start)] + data[start:]
            case 7 if start < len(data):
                flipped = data[start] ^ 1 << rng.randrange(8)
                data = data[:start] + bytes([flipped]) + data[start + 1 :]
    return data[:MAX_CASE_BYTES]


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """Return a random value of any type that JSON and YAML have."""
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(TEXTS),
        lambda: rng.choice((True, False, None, 0.5, -0.0, 1e300, 443.0)),
        lambda: rng.randrange(1000),
    ]
    if depth < 4:
        kinds += [
            lambda: [any_value(rng, depth + 1) for _ in range(rng.randrange(4))],
            lambda: {
                str(rng.choice(TEXTS)): any_value(rng, depth + 1) for _ in range(rng.randrange(4))
            },
        ]
    return rng.choice(kinds)()


def list_entries(tree: Any) -> list[tuple[Any, Any]]:
    """Return the dict and key, or the list and index, of each value in a tree."""
    entries = []
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            entries += [(node, key) for key in node]
            nodes += node.values()
        elif isinstance(node, list):
            entries += [(node, index) for index in range(len(node))]
            nodes += node
    return entries


def change_value(rng: random.Random, tree: Any, keys: list[str]) -> None:
    """Change, move or remove one random key or value in a tree."""
    if not (entries := list_entries(tree)):
        return
    holder, key = rng.choice(entries)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 | 2 | 3:
            holder[key] = any_value(rng)
        case 4:
            other, other_key = rng.choice(entries)
            if isinstance(other, list) or other_key in other:
                holder[key] = copy_tree(other[other_key])
        case 5:
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
        case 6 if isinstance(holder, dict):
            holder[rng.choice(keys)] = holder.pop(key)
        case 7 if isinstance(holder, dict):
            holder[rng.choice(keys)] = any_value(rng)


def copy_tree(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: copy_tree(value) for key, value in tree.items()}
    return [copy_tree(value) for value in tree] if isinstance(tree, list) else tree
