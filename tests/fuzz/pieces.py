"""Fuzzes the compression of pages, with any text and any pieces: see `tests.support.pieces`.

A case is a list of slices. A slice has four parts: the number of bytes of its text (2 bytes), the
text, the number of its pieces (2 bytes), and the pieces. A piece has a length and a source (4 bytes
each). Bytes that are missing at the end of a case are zeros.
"""

import random
import struct
from contextlib import ExitStack
from types import ModuleType
from typing import ClassVar

from skyfast import _table
from tests.fuzz.driver import Target
from tests.fuzz.mutation import change_bytes
from tests.support import core_builds
from tests.support.deflated import LAST_BLOCK, inflate, strictly_inflated
from tests.support.pieces import Slices, random_slices

MAX_STRICT_BYTES = 3_000
"""The strict decoder is slow, so it decodes only cases whose text has fewer bytes."""

MAX_SLICE = 500
"""The maximum size of a slice in the build `checked` of the core, in bytes."""


class Pieces(Target):
    """Compresses slices, and checks that decompression returns the same text."""

    name: ClassVar[str] = "pieces"

    def open(self, stack: ExitStack) -> None:
        self._core: ModuleType = _table
        if not hasattr(_table, "deflate_pieces"):
            self._core = core_builds.load(core_builds.built("checked"))

    def generate(self, rng: random.Random) -> bytes:
        case = encode(random_slices(rng, MAX_SLICE))
        return change_bytes(rng, case) if rng.random() < 0.5 else case

    def run(self, case: bytes) -> None:
        slices = decode(case)
        text = b"".join(text for text, _ in slices)
        blocks = self._core.deflate_pieces(slices)
        assert inflate(blocks) == text
        if len(text) < MAX_STRICT_BYTES:
            assert strictly_inflated(blocks + LAST_BLOCK) == text


def encode(slices: Slices) -> bytes:
    return b"".join(
        struct.pack("<H", len(text))
        + text
        + struct.pack("<H", len(pieces))
        + b"".join(struct.pack("<2I", *piece) for piece in pieces)
        for text, pieces in slices
    )


def decode(case: bytes) -> Slices:
    """Return the slices of a case. Texts and lists of pieces that are too long are truncated."""
    slices: Slices = []
    while case:
        size, case = _numbers("<H", case)
        text, case = case[: size[0]][:MAX_SLICE], case[size[0] :]
        count, case = _numbers("<H", case)
        pieces = []
        for _ in range(min(count[0], MAX_SLICE // 2)):
            piece, case = _numbers("<2I", case)
            pieces.append((piece[0], piece[1]))
        slices.append((text, pieces))
    return slices


def _numbers(layout: str, case: bytes) -> tuple[tuple[int, ...], bytes]:
    size = struct.calcsize(layout)
    return struct.unpack(layout, case[:size].ljust(size, b"\0")), case[size:]
