"""Decompresses pages of the table with several decoders."""

import shutil
import struct
import subprocess
import zlib
from functools import cache
from pathlib import Path

from isal import isal_zlib

from skyfast._table import Page
from tests.support.paths import ROOT, TESTS

CHUNK_BYTES = 512 * 1024
LAST_BLOCK = b"\x03\x00"
"""An empty block that ends the stream."""

HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
RAW_WBITS = -15

MAX_CODE_BITS = 12
"""Maximum length of a Huffman code from the core. The deflate format allows 15 bits."""

LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
LENGTHS = tuple(
    (3 + ((4 + i % 4) << (i // 4 - 1)) if i >= 8 else 3 + i, max(0, i // 4 - 1)) for i in range(28)
)
"""Each length symbol except the last: its shortest length, and the number of extra bits."""

DISTANCES = tuple(
    (1 + ((2 + i % 2) << (i // 2 - 1)) if i >= 4 else 1 + i, max(0, i // 2 - 1)) for i in range(30)
)


def deflate_all(page: Page, size: int = CHUNK_BYTES) -> tuple[bytes, bytes]:
    lines, blocks = [], []
    while True:
        chunk, deflated = page.deflate(size)
        lines.append(bytes(chunk))
        blocks.append(deflated)
        if not chunk:
            return b"".join(lines), b"".join(blocks)


def inflate(blocks: bytes) -> bytes:
    """Decompress deflate blocks that do not end the stream."""
    decoder = zlib.decompressobj(RAW_WBITS)
    text = decoder.decompress(blocks + LAST_BLOCK)
    assert decoder.eof
    assert decoder.unused_data == b""
    return text


def read_deflated(page: Page, size: int = CHUNK_BYTES) -> bytes:
    """Return a page's lines. Assert that its deflate blocks contain the same lines."""
    lines, blocks = deflate_all(page, size)
    assert inflate(blocks) == lines
    return lines


def gzip_member(lines: bytes, blocks: bytes) -> bytes:
    return HEADER + blocks + LAST_BLOCK + struct.pack("<II", zlib.crc32(lines), len(lines))


def check_with_all_decoders(lines: bytes, blocks: bytes) -> None:
    """Assert that zlib, isal, `strictly_inflated` and Go (if installed) output ``lines``."""
    member = gzip_member(lines, blocks)
    assert zlib.decompress(member, wbits=31) == lines
    assert isal_zlib.decompress(member, wbits=31) == lines
    assert strictly_inflated(blocks + LAST_BLOCK) == lines
    if HAS_GO:
        assert inflated_by_go(member) == lines


HAS_GO = shutil.which("go") is not None


@cache
def go_program() -> Path:
    """Build ``tests/support/inflate``."""
    path = ROOT / "build" / "inflate"
    source = TESTS / "support" / "inflate" / "main.go"
    path.parent.mkdir(exist_ok=True)
    subprocess.run(["go", "build", "-o", path, source], check=True)
    return path


def inflated_by_go(member: bytes) -> bytes:
    return subprocess.run([go_program()], input=member, capture_output=True, check=True).stdout


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, count: int) -> int:
        value = 0
        for i in range(count):
            byte, bit = divmod(self.position, 8)
            value |= (self._data[byte] >> bit & 1) << i
            self.position += 1
        return value

    def symbol(self, code: dict[tuple[int, int], int]) -> int:
        value = 0
        for length in range(1, 16):
            value = value << 1 | self.take(1)
            if (length, value) in code:
                return code[length, value]
        raise AssertionError("no such code")


def strictly_inflated(data: bytes) -> bytes:
    """Decompress a deflate stream. Assert that it follows rules stricter than those of the format.

    Each dynamic block must have a complete code for all symbols, with at most 12 bits per symbol.
    All other blocks must be empty.
    """
    bits = _Bits(data)
    out = bytearray()
    is_last = 0
    while not is_last:
        is_last, kind = bits.take(1), bits.take(2)
        if kind == 0:
            bits.position = -(-bits.position // 8) * 8
            assert bits.take(32) == 0xFFFF0000
        elif kind == 1:
            assert bits.take(7) == 0, "a block with fixed codes is not empty"
        else:
            _inflate_block(bits, out)
    assert -(-bits.position // 8) == len(data)
    return bytes(out)


def _inflate_block(bits: _Bits, out: bytearray) -> None:
    literals, distances, sizes = bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4
    assert (literals, distances) == (286, 30)
    counts = dict.fromkeys(range(19), 0)
    for i in range(sizes):
        counts[LENGTH_ORDER[i]] = bits.take(3)
    code = _code([counts[i] for i in range(19)])
    lengths: list[int] = []
    while len(lengths) < literals + distances:
        symbol = bits.symbol(code)
        assert symbol <= 16
        lengths += [symbol] if symbol < 16 else lengths[-1:] * (3 + bits.take(2))
    assert len(lengths) == literals + distances
    assert 0 < min(lengths) <= max(lengths) <= MAX_CODE_BITS
    literal_code, distance_code = _code(lengths[:literals]), _code(lengths[literals:])
    while (symbol := bits.symbol(literal_code)) != 256:
        if symbol < 256:
            out.append(symbol)
            continue
        base, extra = (258, 0) if symbol == 285 else LENGTHS[symbol - 257]
        length = base + bits.take(extra)
        base, extra = DISTANCES[bits.symbol(distance_code)]
        distance = base + bits.take(extra)
        assert 3 <= length <= 258
        assert 1 <= distance <= min(len(out), 32_768)
        for _ in range(length):
            out.append(out[-distance])


def _code(lengths: list[int]) -> dict[tuple[int, int], int]:
    """Return the symbol of each bit pattern (length, value) in the code with these lengths."""
    code = {}
    value = 0
    for length in range(1, 16):
        for symbol, symbol_length in enumerate(lengths):
            if symbol_length == length:
                code[length, value] = symbol
                value += 1
        value <<= 1
    assert value == 1 << 16, "the code is not complete"
    return code
