"""Random text with random pieces for the compressor.

A *piece* is the renderer's hint about a part of the text: see "Compressed pages" in
docs/architecture.md.
"""

import random

TEXT = 0
HEAD = 1 << 28
FIXED = 2 << 28
COPIED = 3 << 28
KIND = 7 << 28
STRING = 1 << 31
"""The sources of pieces, as in ``table/pieces.pxi``. ``KIND`` is the mask of all sources except
`STRING`."""

MAX_DISTANCE = 40_000
"""Maximum distance from a random piece back to the text that it repeats. The deflate format allows
32,768."""

Slices = list[tuple[bytes, list[tuple[int, int]]]]
"""Texts with the lengths and the sources of their pieces."""

ALPHABETS = (b"0123456789", b'abcdef."={}', bytes(range(256)), "é😀x".encode(), b"\0\xff")


def random_slices(rng: random.Random, max_bytes: int) -> Slices:
    """Return slices of up to ``max_bytes`` bytes. In three of ten calls, some pieces are wrong."""
    slices: Slices = []
    written = bytearray()
    alphabet = rng.choice(ALPHABETS)
    words = [_text(rng, alphabet, rng.choice((1, 3, 9, 40))) for _ in range(rng.choice((2, 50)))]
    is_honest = rng.random() < 0.7
    for _ in range(rng.choice((1, 5, 150))):
        text, pieces = bytearray(), []
        for _ in range(rng.choice((1, 10, 60))):
            piece, source = _piece(rng, written + text, words, alphabet)
            if len(text) + len(piece) > max_bytes:
                break
            if not is_honest and rng.random() < 0.2:
                source = rng.choice((TEXT, HEAD, FIXED, COPIED, STRING)) | rng.randrange(200)
            length = len(piece)
            if not is_honest and rng.random() < 0.1:
                length = rng.choice((0, 1, length + 1, 1000))
            text += piece
            pieces.append((length, source))
        written += text
        slices.append((bytes(text), pieces))
    return slices


def _piece(
    rng: random.Random, written: bytes, words: list[bytes], alphabet: bytes
) -> tuple[bytes, int]:
    kind = rng.choice((TEXT, FIXED, FIXED, COPIED, STRING, HEAD))
    if kind == COPIED and written:
        distance = rng.randint(1, min(len(written), MAX_DISTANCE))
        start = len(written) - distance
        return written[start : start + rng.choice((1, 2, 3, 30, 300))], COPIED | distance
    if kind in {FIXED, STRING}:
        number = rng.randrange(len(words))
        return words[number], kind | number
    return _text(rng, alphabet, rng.choice((0, 1, 7, 8, 9, 20))), HEAD if kind == HEAD else TEXT


def _text(rng: random.Random, alphabet: bytes, length: int) -> bytes:
    return bytes(rng.choices(alphabet, k=length))
