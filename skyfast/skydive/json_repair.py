"""Repairs JSON text that the decoder rejects although its structure is valid.

Two things stop the decoder that RFC 8259 allows: an escape that is half of a surrogate pair
without the other half, and nesting that is too deep to follow. Neither must cost more than the
part of the text that holds it.
"""

import re
from typing import Final

import msgspec

MAX_DEPTH: Final = 64
"""Levels of nesting that are kept of a text which has more than the decoder can follow.

A flow has 3 to 5 below its message's own two."""

MAX_REPAIRED_TOKENS: Final = 500_000
"""Escapes, or strings and brackets, looked at to save the rest of a message.

They take 0.2 s, a small part of what a pong may take; such a message of 100 flows has 10,000."""

# A string, whole or unfinished, or a bracket. Possessive, so that no input makes it backtrack.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)

# An escape; the group holds one that is half of a surrogate pair without the other half.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def mark_lone_surrogates(data: bytes, *, max_escapes: int = 0) -> bytes:
    r"""Return ``data`` in which halves of surrogate pairs are bytes that are not UTF-8.

    The decoder takes ``"\\ud800"`` for the end of the text. With a wrong byte instead, only the
    string that holds it is wrong. Looks at no more than ``max_escapes`` escapes, or at all of them
    where that is 0.
    """

    def marked(escape: re.Match[bytes]) -> bytes:
        return b"\xff" if escape[1] else escape[0]

    return _ESCAPE.sub(marked, data, count=max_escapes)


def replace_unreadable(data: bytes) -> bytes:
    """Return ``data`` with U+FFFD for each half of a surrogate pair and what is not UTF-8."""
    return mark_lone_surrogates(data).decode(errors="replace").encode()


def prune_depth(data: bytes) -> bytes:
    """Return ``data`` without what is nested deeper than `MAX_DEPTH`.

    Raises:
        msgspec.DecodeError: It has more than `MAX_REPAIRED_TOKENS` strings and brackets.

    """
    kept = bytearray()
    depth = 0
    kept_to = 0
    for count, token in enumerate(_TOKEN.finditer(data)):
        if count == MAX_REPAIRED_TOKENS:
            raise msgspec.DecodeError("too long for its depth")
        match token[0]:
            case b"[" | b"{":
                depth += 1
                if depth == MAX_DEPTH:
                    kept += data[kept_to : token.end()]
                    kept_to = len(data)
            case b"]" | b"}":
                if depth == MAX_DEPTH:
                    kept_to = token.start()
                depth -= 1
    return bytes(kept + data[kept_to:])
