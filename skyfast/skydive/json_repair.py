"""Repairs JSON text that has a valid structure, but is rejected by msgspec.

RFC 8259 allows two things that msgspec rejects: escapes of lone surrogates, and nesting beyond
msgspec's limit. A repair changes only strings with lone surrogates, and parts that are nested too
deeply.
"""

import re
from typing import Final

import msgspec

MAX_DEPTH: Final = 64
"""Number of nesting levels that `prune_depth` keeps. Messages of analyzers have 5 to 7 levels."""

MAX_REPAIRED_TOKENS: Final = 500_000
"""Maximum number of tokens (escapes, or strings and brackets) that are parsed to repair a message.

Parsing 500,000 tokens takes 0.2 s, much less than the timeout for a pong. A message of 100 flows
contains 10,000 strings and brackets."""

# Matches a bracket or a string. The end of the string may be missing. The possessive quantifier
# prevents backtracking.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)

# Matches an escape. The group matches only if the escape is a lone surrogate.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def mark_lone_surrogates(data: bytes, *, max_escapes: int = 0) -> bytes:
    r"""Return ``data`` after replacing each lone surrogate with a byte that is invalid in UTF-8.

    msgspec mistakes ``"\ud800"`` for the end of the text. If an invalid byte replaces this escape,
    msgspec rejects only the string that contains the byte. ``max_escapes`` limits how many escapes
    are parsed; 0 means all.
    """

    def marked(escape: re.Match[bytes]) -> bytes:
        return b"\xff" if escape[1] else escape[0]

    return _ESCAPE.sub(marked, data, count=max_escapes)


def replace_unreadable(data: bytes) -> bytes:
    """Return ``data`` after replacing lone surrogates and invalid UTF-8 with U+FFFD."""
    return mark_lone_surrogates(data).decode(errors="replace").encode()


def prune_depth(data: bytes) -> bytes:
    """Return ``data`` without the parts that are nested deeper than `MAX_DEPTH`.

    Raises:
        msgspec.DecodeError: ``data`` has more than `MAX_REPAIRED_TOKENS` strings and brackets.

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
