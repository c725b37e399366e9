"""What is wrong in JSON text, and can be taken out without the decoder's help.

Two things stop the decoder that do not make the structure of the text wrong: half of a surrogate
pair, and nesting that is too deep to follow.
"""

import re

import msgspec

MAX_DEPTH = 64
"""Levels of nesting that are kept of a message which has more than the decoder can follow.

A flow has 3 to 5 below the message's own two."""

MAX_REPAIRED_TOKENS = 500_000
"""Escapes, or strings and brackets, looked at to save the rest of a message.

They take 0.2 s, a small part of what a pong may take; such a message of 100 flows has 10,000."""

# A string, whole or unfinished, or a bracket. Possessive, so that no input makes it backtrack.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)

# An escape; the group holds one that is half of a surrogate pair without the other half.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def unpaired_marked(data: bytes) -> bytes:
    r"""Return a message in which halves of surrogate pairs are bytes that are no UTF-8.

    RFC 8259 allows ``"\\ud800"`` in a text, the decoder takes it for the end of the message. With
    a wrong byte instead, only the flow that holds it is wrong.
    """

    def marked(escape: re.Match[bytes]) -> bytes:
        return b"\xff" if escape[1] else escape[0]

    return _ESCAPE.sub(marked, data, count=MAX_REPAIRED_TOKENS)


def pruned(data: bytes) -> bytes:
    """Return a message without what is nested deeper than `MAX_DEPTH`.

    :raises msgspec.DecodeError: it has more than `MAX_REPAIRED_TOKENS` strings and brackets.
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
