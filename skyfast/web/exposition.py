"""The metrics page: its families and their order, its compression and its delivery.

Rendering and compression run in a thread of their own, some chunks ahead of the reader;
nobody ever holds a whole page. Nothing here knows of HTTP: `skyfast.web.server` decides who is
served.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Flag, auto
from typing import Protocol

from isal import isal_zlib

from skyfast.stats import Stats, TableCounts
from skyfast.web import self_metrics
from skyfast.web.cardinality import Cardinality

FIRST_CHUNK_BYTES = 16 * 1024
"""A page's first chunk: small, so that the first byte leaves at once."""

CHUNK_BYTES = 512 * 1024
"""What is rendered, and compressed, without the GIL at a time."""

COMPRESSED_BYTES = 128 * 1024
"""What is handed on of a compressed page at a time: waking the event loop costs."""

QUEUE_CHUNKS = 4
"""How far rendering runs ahead of the reader."""

GZIP_LEVEL = 1
"""isal's second of four: 1.1 GB/s, and pages shrink tenfold."""

GZIP_WBITS = 31
"""zlib's spelling of a gzip header and trailer."""

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
"""The format that everybody reads."""

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""The format that is offered beside it where the counters' names end as it demands."""

_END = b"# EOF\n"
"""What OpenMetrics ends a page with: without it, it is not whole."""


class TablePage(Protocol):
    """The flows' families, read once from front to back."""

    def read(self, size: int, /) -> bytes:
        """Return about ``size`` bytes, and nothing at the end. Does not hold the GIL."""


class ExpositionTable(TableCounts, Protocol):
    """What a page needs of the table."""

    def page(self, now: float, openmetrics: bool = False) -> TablePage: ...


class RenderedPart(Protocol):
    """A part of the page that is rendered in one go."""

    def page(self, now: float, openmetrics: bool = False) -> bytes: ...


class Part(Flag):
    """The parts of a page, in their order."""

    FLOWS = auto()
    INTERFACES = auto()
    CAPTURES = auto()
    SELF = auto()
    ALL = FLOWS | INTERFACES | CAPTURES | SELF


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpositionSource:
    """What a configuration decides of the pages.

    ``cardinality`` is that of the table's main view, ``views`` are the prefixes of its others.
    ``standard_names`` says that all families have such; then OpenMetrics is offered too.
    """

    table: ExpositionTable
    cardinality: Cardinality
    views: tuple[str, ...]
    interfaces: RenderedPart
    captures: RenderedPart
    standard_names: bool


class Exposition:
    """Makes pages of what the source and the counters hold now.

    Another ``source`` may be set at any time: pages that were begun go on with their own.
    """

    def __init__(self, *, source: ExpositionSource, stats: Stats, now: Callable[[], float]) -> None:
        """Build pages of these; ``now`` is the clock that the table's time-outs run by."""
        self.source = source
        self._stats = stats
        self._now = now

    async def self_page(self, *, openmetrics: bool = False) -> bytes:
        """Return the page of self metrics. Takes no thread of those that pages are rendered in."""
        return await asyncio.to_thread(b"".join, self._chunks(Part.SELF, openmetrics=openmetrics))

    def stream(self, parts: Part, *, gzip: bool, openmetrics: bool = False) -> "Stream":
        """Begin to render ``parts`` in a thread, and return what comes out of it."""
        return Stream(self._chunks(parts, openmetrics=openmetrics), gzip=gzip)

    def _chunks(self, parts: Part, *, openmetrics: bool) -> Iterator[bytes]:
        """Return what renders ``parts``, in any thread, as they are now."""
        source = self.source
        counts = b""
        if Part.SELF in parts:
            # Belongs on the event loop: see there.
            counts = self_metrics.render(
                self._stats,
                source.table,
                views=source.views,
                standard_names=source.standard_names,
                openmetrics=openmetrics,
            )
        return _chunks(source, parts, counts, self._now(), openmetrics=openmetrics)


def _chunks(
    source: ExpositionSource, parts: Part, counts: bytes, now: float, *, openmetrics: bool
) -> Iterator[bytes]:
    """Yield the page of ``now``; ``counts`` are the self metrics that the event loop rendered."""
    if Part.FLOWS in parts:
        page = source.table.page(now, openmetrics=openmetrics)
        size = FIRST_CHUNK_BYTES
        while chunk := page.read(size):
            yield chunk
            size = CHUNK_BYTES
    for part, rendered in (
        (Part.INTERFACES, source.interfaces),
        (Part.CAPTURES, source.captures),
    ):
        if part in parts:
            text = rendered.page(now, openmetrics=openmetrics)
            for start in range(0, len(text), CHUNK_BYTES):
                yield text[start : start + CHUNK_BYTES]
    if Part.SELF in parts:
        values = source.cardinality.values()
        yield counts + self_metrics.render_label_values(values, openmetrics=openmetrics)
    if openmetrics:
        yield _END


class Stream:
    """A page on its way from the thread that renders it to the event loop that sends it.

    Iterate over it for the chunks, none of them empty; an error of rendering is raised
    there. The thread ends with the context: within the time that one chunk takes, where
    that is left before the page is at its end.

    The two sides meet in a bounded queue. The thread sleeps while it is full, and wakes the
    event loop only when that is waiting, which a hop through an executor would do for every
    chunk.
    """

    def __init__(self, chunks: Iterator[bytes], *, gzip: bool) -> None:
        """Start the thread; call this on the event loop that iterates."""
        self.page_bytes = 0
        """Bytes rendered, before compression."""
        self._queue: deque[bytes] = deque()
        self._lock = threading.Lock()  # held for some instructions only, by either side
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
            args=(_gzipped(counted) if gzip else counted,),
            name="skyfast-page",
            daemon=True,  # nothing is lost with it: the reader is gone too
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
        """Drop what was rendered and let the thread end. May be called again."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._not_full.notify()

    async def ended(self) -> None:
        """Wait until the thread has done its work."""
        await asyncio.shield(self._ended)

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.page_bytes += len(chunk)
            yield chunk

    def _run(self, chunks: Iterable[bytes]) -> None:
        error = None
        try:
            for chunk in chunks:
                if not self._put(chunk):
                    break
        except Exception as raised:  # noqa: BLE001  # raised again where the page is awaited
            error = raised
        with self._lock:
            self._error = error
            self._done = True
            waiter, self._reader = self._reader, None
        if waiter is not None:
            self._resolve(waiter)
        self._resolve(self._ended)

    def _put(self, chunk: bytes) -> bool:
        """Queue ``chunk`` as soon as there is room; return False when nobody wants it."""
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
        """Set the result of ``future`` from the rendering thread."""
        try:
            self._loop.call_soon_threadsafe(_set, future)
        except RuntimeError:
            pass  # the event loop was closed, and the reader with it


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # isal keeps some of what it has back, so many calls return nothing.
    compressor = isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS)
    ready: list[bytes] = []
    wanted_bytes = 1  # the first that comes leaves at once
    for chunk in chunks:
        ready.append(compressor.compress(chunk))
        if sum(map(len, ready)) >= wanted_bytes:
            yield b"".join(ready)
            ready.clear()
            wanted_bytes = COMPRESSED_BYTES
    yield b"".join((*ready, compressor.flush()))


def compress(data: bytes) -> bytes:
    """Return ``data`` as one gzip member."""
    return isal_zlib.compress(data, GZIP_LEVEL, wbits=GZIP_WBITS)
