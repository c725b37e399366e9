"""How cases are made of good ones: values of the wrong kind and size, and bytes where they fall."""

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


def wrong_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return ``data`` with one or more faults that know nothing of what it means."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 8, 64, 1000)))
        match rng.randrange(8):
            case 0:
                data = data[:at]
            case 1:
                data = data[at:]
            case 2:
                data = data[:at] + rng.choice(BYTES) + data[at:]
            case 3:
                data = data[:at] + data[end:]
            case 4:
                data = data[:at] + data[at:end] * rng.choice((2, 3, 50)) + data[end:]
            case 5:
                data = data[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + data[end:]
            case 6:
                other = rng.randrange(len(data) + 1)
                data = data[:at] + data[other : other + (end - at)] + data[at:]
            case 7 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data[:MAX_CASE_BYTES]


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Return a value of any kind that JSON and YAML have."""
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(TEXTS),
        lambda: rng.choice((True, False, None, 0.5, -0.0, 1e300, 443.0)),
        lambda: rng.randrange(1000),
    ]
    if depth < 4:
        kinds += [
            lambda: [anything(rng, depth + 1) for _ in range(rng.randrange(4))],
            lambda: {
                str(rng.choice(TEXTS)): anything(rng, depth + 1) for _ in range(rng.randrange(4))
            },
        ]
    return rng.choice(kinds)()


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return each container of a tree with each key or index that it has."""
    found = []
    rest = [tree]
    while rest:
        each = rest.pop()
        if isinstance(each, dict):
            found += [(each, key) for key in each]
            rest += each.values()
        elif isinstance(each, list):
            found += [(each, at) for at in range(len(each))]
            rest += each
    return found


def wrong_value(rng: random.Random, tree: Any, keys: list[str]) -> None:
    """Change one thing somewhere in a tree: a key, a value or where something stands."""
    if not (all_places := places(tree)):
        return
    holder, at = rng.choice(all_places)
    match rng.randrange(8):
        case 0:
            del holder[at]
        case 1 | 2 | 3:
            holder[at] = anything(rng)
        case 4:
            other, there = rng.choice(all_places)
            if isinstance(other, list) or there in other:
                holder[at] = copied(other[there])
        case 5:
            holder[at] = rng.choice(([holder[at]], {"a": holder[at]}, str(holder[at])))
        case 6 if isinstance(holder, dict):
            holder[rng.choice(keys)] = holder.pop(at)
        case 7 if isinstance(holder, dict):
            holder[rng.choice(keys)] = anything(rng)


def copied(tree: Any) -> Any:
    """Return a copy of a tree that shares nothing with it."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree
