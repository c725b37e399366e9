"""The metrics page: its families and their order, its compression and its delivery.

Each page is rendered and compressed in its own thread. The thread is at most a few chunks ahead of
the reader, so a page is never buffered as a whole.
"""

import asyncio
import struct
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Protocol

from isal import isal_zlib

from skyfast.flows.catalog import NODE_TID_LABEL
from skyfast.stats import Stats, TableCounts
from skyfast.web import self_metrics
from skyfast.web.cardinality import Cardinality
from skyfast.web.flow_query import ALL_FLOWS, FlowQuery
from skyfast.web.interface_info import InterfaceInfo

FIRST_CHUNK_BYTES = 16 * 1024
"""The size of a page's first chunk: small, so that the first byte is sent early."""

CHUNK_BYTES = 512 * 1024
"""The size of all further chunks. Each chunk is rendered and compressed without the GIL."""

COMPRESSED_BYTES = 128 * 1024
"""The minimum size of compressed chunks other than the first and the last.

Smaller chunks would wake the event loop too often."""

QUEUE_CHUNKS = 4
"""The maximum number of rendered chunks that wait for the reader."""

GZIP_LEVEL = 1
"""isal's compression level, from 0 to 3. Level 1 shrinks pages to a tenth, at 1.1 GB/s."""

GZIP_WBITS = 31
"""The ``wbits`` of zlib for the gzip format."""

_RAW_WBITS = -15
"""The ``wbits`` of zlib for a deflate stream without a header."""

_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""The header of a gzip member without name and time (RFC 1952)."""

DIRECT_CONNECTIONS = 1_000
"""Pages with fewer connections are compressed by isal, larger pages by `TablePage.deflate`.

`TablePage.deflate` needs about 2 MiB of memory even for a small page."""

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""The content type of OpenMetrics 1.0, which is offered with ``naming: standard``."""

OPENMETRICS_2 = "application/openmetrics-text; version=2.0.0; charset=utf-8"
"""The content type of OpenMetrics 2.0, which is offered to scrapers that ask for this version."""

CONTENT_TYPES = (TEXT_FORMAT, OPENMETRICS, OPENMETRICS_2)
"""The content types by the major version of OpenMetrics. Index 0 is the text format."""

_END = b"# EOF\n"
"""The end of an OpenMetrics page. A page without this end is incomplete."""


class TablePage(Protocol):
    """The flow families of one page. They can be read only once, from start to end."""

    def read(self, size: int, /) -> bytes:
        """Return about ``size`` bytes, or b"" at the end. Releases the GIL."""

    def deflate(self, size: int, /) -> tuple[memoryview, bytes]:
        """Return about ``size`` bytes of text, and the text compressed to deflate blocks.

        The next call overwrites the text. At the end of the page, the text is empty. The last
        blocks end at a byte boundary, so that other blocks can follow. Releases the GIL.
        """

    def distinct_values(self, label: str, /) -> list[str]:
        """Return all values that the page may show for a label. Call this before `read`."""


class ExpositionTable(TableCounts, Protocol):
    def page(
        self,
        now: float,
        openmetrics: int = 0,
        *,
        created: bool = False,
        part: int = 0,
        parts: int = 1,
        names: Container[str] | None = None,
    ) -> TablePage: ...
    def hidden(self, now: float, /) -> Sequence[tuple[int, int] | None]: ...


@dataclass(frozen=True, slots=True)
class DeflatedText:
    """A chunk of a page, uncompressed and compressed."""

    text: memoryview
    """The uncompressed text."""
    blocks: bytes
    """The text compressed to deflate blocks."""

    def __len__(self) -> int:
        return len(self.text)


Chunk = bytes | DeflatedText
"""A chunk of a page. On a page, chunks of type `DeflatedText` precede all other chunks."""


class RenderedPart(Protocol):
    """A part of the page whose text is rendered in one call."""

    def page(self, now: float, openmetrics: int = 0, *, created: bool = False) -> bytes: ...


class Part(Flag):
    """The parts of a page, in the order of the page."""

    FLOWS = auto()
    INTERFACES = auto()
    CAPTURES = auto()
    SELF = auto()
    ALL = FLOWS | INTERFACES | CAPTURES | SELF


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpositionSource:
    """What the metrics pages are rendered from, besides `Stats`."""

    table: ExpositionTable
    cardinality: Cardinality
    views: tuple[str, ...]
    """The prefixes of all views except the first view, in the table's order."""
    table_families: tuple[str, ...]
    """The names of the table's families, in the order of the page."""
    interface_info: InterfaceInfo | None
    """None if there are no info series. Otherwise, at least one view has the label ``node_tid``."""
    interfaces: RenderedPart
    captures: RenderedPart
    standard_names: bool
    """Whether all counters have standard names. If not, OpenMetrics 1.0 is not offered."""
    start_timestamps: bool
    """Whether pages in OpenMetrics 1.0 include the start times of the table's counters.

    Pages in OpenMetrics 2.0 always include the start times."""

    @property
    def flow_families(self) -> tuple[str, ...]:
        """The names of all families of ``/metrics/flows``, in the order of the page."""
        info = self.interface_info
        return self.table_families if info is None else (*self.table_families, info.name)


class Exposition:
    """Renders the metrics pages."""

    def __init__(self, *, source: ExpositionSource, stats: Stats, now: Callable[[], float]) -> None:
        """``now`` returns the time of the table's clock in seconds."""
        self.source = source
        """Can be replaced at any time. Pages in progress still use the previous source."""
        self._stats = stats
        self._now = now

    async def self_page(self, *, openmetrics: int = 0) -> bytes:
        chunks = self._chunks(Part.SELF, direct=False, openmetrics=openmetrics, query=ALL_FLOWS)
        return await asyncio.to_thread(b"".join, _texts(chunks))

    def stream(
        self,
        parts: Part,
        *,
        gzip: bool,
        direct: bool = False,
        openmetrics: int = 0,
        query: FlowQuery = ALL_FLOWS,
    ) -> "Stream":
        """Start rendering ``parts`` in a thread, and return the stream of chunks.

        With ``gzip`` and ``direct``, the table compresses the flow families of large pages. In all
        other cases with ``gzip``, isal compresses the whole page.
        """
        direct = direct and gzip
        chunks = self._chunks(parts, direct=direct, openmetrics=openmetrics, query=query)
        return Stream(chunks, gzip=gzip)

    def _chunks(
        self, parts: Part, *, direct: bool, openmetrics: int, query: FlowQuery
    ) -> Iterator[Chunk]:
        """Return an iterator that renders ``parts`` of the current source, in any thread."""
        source = self.source
        counts = b""
        if Part.SELF in parts:
            # Call self_metrics.render here, because it must run on the event loop.
            counts = self_metrics.render(
                self._stats,
                source.table,
                views=source.views,
                standard_names=source.standard_names,
                openmetrics=openmetrics,
            )
        return _chunks(
            source, parts, counts, self._now(), direct=direct, openmetrics=openmetrics, query=query
        )


def _chunks(
    source: ExpositionSource,
    parts: Part,
    counts: bytes,
    now: float,
    *,
    direct: bool,
    openmetrics: int,
    query: FlowQuery,
) -> Iterator[Chunk]:
    """Yield the page. ``counts`` are the self metrics that were rendered on the event loop."""
    if Part.FLOWS in parts:
        yield from _flows(source, query, now, direct=direct, openmetrics=openmetrics)
    for part, rendered in (
        (Part.INTERFACES, source.interfaces),
        (Part.CAPTURES, source.captures),
    ):
        if part in parts:
            text = rendered.page(now, openmetrics=openmetrics, created=source.start_timestamps)
            for start in range(0, len(text), CHUNK_BYTES):
                yield text[start : start + CHUNK_BYTES]
    if Part.SELF in parts:
        # Count the hidden connections of the whole table. The query parameter `part` exists only on
        # /metrics/flows, which has no self metrics.
        hidden = dict(zip(("", *source.views), source.table.hidden(now), strict=True))
        values = source.cardinality.values()
        yield (
            counts
            + self_metrics.render_hidden(hidden, openmetrics=openmetrics)
            + self_metrics.render_label_values(values, openmetrics=openmetrics)
        )
    if openmetrics:
        yield _END


def _flows(
    source: ExpositionSource, query: FlowQuery, now: float, *, direct: bool, openmetrics: int
) -> Iterator[Chunk]:
    page = source.table.page(
        now,
        openmetrics=openmetrics,
        created=source.start_timestamps,
        part=query.part,
        parts=query.parts,
        names=query.names,
    )
    info = source.interface_info
    # If the page is read in parts, part 0 has the info series for all parts: a single scan finds
    # all capture points.
    if info is not None and (query.part or not query.shows(info.name)):
        info = None
    # Find the capture points before reading the page, so that no series of the page lacks its info
    # series.
    node_tids = page.distinct_values(NODE_TID_LABEL) if info else []
    is_large = source.table.connections // query.parts >= DIRECT_CONNECTIONS
    if direct and is_large:
        yield from _deflated(page)
    else:
        yield from _rendered(page)
    if info:
        yield from info.render(node_tids, openmetrics=openmetrics)


def _rendered(page: TablePage) -> Iterator[bytes]:
    size = FIRST_CHUNK_BYTES
    while chunk := page.read(size):
        yield chunk
        size = CHUNK_BYTES


def _deflated(page: TablePage) -> Iterator[DeflatedText]:
    """Yield the page. The last chunk has no text."""
    size = FIRST_CHUNK_BYTES
    text = True
    while text:
        chunk = DeflatedText(*page.deflate(size))
        yield chunk
        text = len(chunk) > 0
        size = CHUNK_BYTES


class Stream:
    """Transfers a page from the thread that renders it to the event loop that sends it.

    Iterating yields non-empty chunks. If rendering fails, iterating raises the exception. Leaving
    the context stops the thread after its current chunk.

    The thread sleeps while the queue is full. It wakes the event loop only if the reader is
    waiting. An executor would wake the event loop for every chunk.
    """

    def __init__(self, chunks: Iterator[Chunk], *, gzip: bool) -> None:
        """Start the thread. Must be called on the event loop that reads the chunks."""
        self.page_bytes = 0
        """Number of bytes rendered so far, before compression."""
        self._queue: deque[bytes] = deque()
        self._lock = threading.Lock()  # threads hold the lock only briefly
        self._not_full = threading.Condition(self._lock)
        self._closed = False
        self._done = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        counted = self._counted(chunks)
        threading.Thread(
            target=self._run,
            args=(gzipped(counted) if gzip else _texts(counted),),
            name="skyfast-page",
            daemon=True,  # killing the thread at exit is harmless: nobody reads the page
        ).start()

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.ended()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        while True:
            with self._lock:
                if self._queue:
                    self._not_full.notify()
                    return self._queue.popleft()
                if self._done:
                    break
                self._reader = self._loop.create_future()
            await self._reader
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def close(self) -> None:
        """Drop queued chunks and stop the thread. Idempotent."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._not_full.notify()

    async def ended(self) -> None:
        """Wait until the thread has finished."""
        await asyncio.shield(self._ended)

    def _counted(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self.page_bytes += len(chunk)
            yield chunk

    def _run(self, chunks: Iterable[bytes]) -> None:
        error = None
        try:
            for chunk in chunks:
                if not self._put(chunk):
                    break
        except Exception as raised:  # noqa: BLE001  # raised by __anext__
            error = raised
        with self._lock:
            self._error = error
            self._done = True
            waiter, self._reader = self._reader, None
        if waiter is not None:
            self._resolve(waiter)
        self._resolve(self._ended)

    def _put(self, chunk: bytes) -> bool:
        """Wait until the queue has room. Add ``chunk``, or return False if the stream is closed."""
        with self._lock:
            while len(self._queue) >= QUEUE_CHUNKS and not self._closed:
                self._not_full.wait()
            if self._closed:
                return False
            self._queue.append(chunk)
            waiter, self._reader = self._reader, None
        if waiter is not None:
            self._resolve(waiter)
        return True

    def _resolve(self, future: "asyncio.Future[None]") -> None:
        """Set the result of ``future``. Called by the rendering thread."""
        try:
            self._loop.call_soon_threadsafe(_set, future)
        except RuntimeError:
            pass  # the event loop is closed, so there is no reader


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _texts(chunks: Iterable[Chunk]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk if isinstance(chunk, bytes) else bytes(chunk.text)


def gzipped(chunks: Iterable[Chunk]) -> Iterator[bytes]:
    """Yield the chunks of a page as one gzip member."""
    member = _GzipMember()
    ready: list[bytes] = []  # many items are empty, because isal buffers data
    wanted_bytes = 1  # send the first output at once
    for chunk in chunks:
        ready.append(member.compress(chunk))
        if sum(map(len, ready)) >= wanted_bytes:
            yield b"".join(ready)
            ready.clear()
            wanted_bytes = COMPRESSED_BYTES
    yield b"".join((*ready, member.flush()))


class _GzipMember:
    """One gzip member (RFC 1952). Chunks of type `DeflatedText` precede all other chunks."""

    def __init__(self) -> None:
        self._compressor = isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS)
        self._is_deflated = False
        self._crc = 0
        self._bytes = 0

    def compress(self, chunk: Chunk) -> bytes:
        if isinstance(chunk, bytes):
            if self._is_deflated:
                self._count(chunk)
            return self._compressor.compress(chunk)
        self._count(chunk.text)
        if self._is_deflated:
            return chunk.blocks
        self._is_deflated = True
        self._compressor = isal_zlib.compressobj(GZIP_LEVEL, wbits=_RAW_WBITS)
        return _GZIP_HEADER + chunk.blocks

    def flush(self) -> bytes:
        end = self._compressor.flush()
        if not self._is_deflated:
            return end
        return end + trailer(self._crc, self._bytes)

    def _count(self, text: bytes | memoryview) -> None:
        self._crc = isal_zlib.crc32(text, self._crc)
        self._bytes += len(text)


def trailer(crc: int, size: int) -> bytes:
    """Return the end of a gzip member: the checksum and the length of its text."""
    return struct.pack("<II", crc, size & 0xFFFFFFFF)


def compress(data: bytes) -> bytes:
    """Return ``data`` as one gzip member."""
    return isal_zlib.compress(data, GZIP_LEVEL, wbits=GZIP_WBITS)
