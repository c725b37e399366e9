"""The page: which families it has, in which order, how it is compressed and handed over.

Rendering and compression run in a thread of their own, some chunks ahead of the reader;
nobody ever holds a whole page. Nothing here knows of HTTP but the rules of
``Accept-Encoding``: :mod:`skyfast.web` decides who is served.
"""

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Flag, auto
from typing import Protocol

from isal import isal_zlib

from skyfast import selfmetrics
from skyfast.selfmetrics import Stats, TableCounts

FIRST_CHUNK_BYTES = 16 * 1024
"""A page's first chunk: small, so that the first byte leaves at once."""

CHUNK_BYTES = 512 * 1024
"""What is rendered, and compressed, without the GIL at a time."""

QUEUE_CHUNKS = 4
"""How far rendering runs ahead of the reader."""

GZIP_LEVEL = 1
"""isal's second of four: 1.1 GB/s, and pages shrink tenfold."""

GZIP_WBITS = 31
"""zlib's spelling of a gzip header and trailer."""

_CODING = re.compile(
    r"([!#$%&'*+.^_`|~0-9a-z-]+)(?:[ \t]*;[ \t]*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?",
    re.IGNORECASE,
)


class TablePage(Protocol):
    """The flows' families, read once from front to back."""

    def read(self, size: int, /) -> bytes:
        """Return about ``size`` bytes, and nothing at the end. Does not hold the GIL."""


class Table(TableCounts, Protocol):
    """What a page needs of the table."""

    def page(self, now: float) -> TablePage: ...


class Interfaces(Protocol):
    """What a page needs of the interfaces."""

    def page(self, now: float) -> bytes: ...


class Part(Flag):
    """The parts of a page, in their order."""

    FLOWS = auto()
    INTERFACES = auto()
    SELF = auto()
    ALL = FLOWS | INTERFACES | SELF


class Exposition:
    """Makes pages of what the table, the interfaces and the counters hold now."""

    def __init__(
        self, *, table: Table, interfaces: Interfaces, stats: Stats, now: Callable[[], float]
    ) -> None:
        """Build pages of these; ``now`` is the clock that the table's time-outs run by."""
        self._table = table
        self._interfaces = interfaces
        self._stats = stats
        self._now = now

    def own(self) -> bytes:
        """Return the self metrics. Belongs on the event loop: see :func:`selfmetrics.render`."""
        return selfmetrics.render(self._stats, self._table)

    def stream(self, parts: Part, *, gzip: bool) -> "Stream":
        """Begin to render ``parts`` in a thread, and return what comes out of it."""
        own = self.own() if Part.SELF in parts else b""
        return Stream(self._chunks(parts, own, self._now()), gzip=gzip)

    def _chunks(self, parts: Part, own: bytes, now: float) -> Iterator[bytes]:
        if Part.FLOWS in parts:
            page = self._table.page(now)
            size = FIRST_CHUNK_BYTES
            while chunk := page.read(size):
                yield chunk
                size = CHUNK_BYTES
        if Part.INTERFACES in parts:
            interfaces = self._interfaces.page(now)
            for start in range(0, len(interfaces), CHUNK_BYTES):
                yield interfaces[start : start + CHUNK_BYTES]
        if own:
            yield own


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
        self._room = threading.Condition(self._lock)
        self._closed = False
        self._done = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
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
                    self._room.notify()
                    return self._queue.popleft()
                if self._done:
                    break
                self._waiter = self._loop.create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def close(self) -> None:
        """Drop what was rendered and let the thread end. May be called again."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._room.notify()

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
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._resolve(waiter)
        self._resolve(self._ended)

    def _put(self, chunk: bytes) -> bool:
        """Queue ``chunk`` as soon as there is room; return False when nobody wants it."""
        with self._lock:
            while len(self._queue) >= QUEUE_CHUNKS and not self._closed:
                self._room.wait()
            if self._closed:
                return False
            self._queue.append(chunk)
            waiter, self._waiter = self._waiter, None
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
    # isal keeps up to 1.3 MB back before it gives anything, so most calls return nothing.
    compressor = isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS)
    for chunk in chunks:
        if compressed := compressor.compress(chunk):
            yield compressed
    yield compressor.flush()


def compress(data: bytes) -> bytes:
    """Return ``data`` as one gzip member."""
    return isal_zlib.compress(data, GZIP_LEVEL, wbits=GZIP_WBITS)


def encoding(accept_encoding: str | None) -> str | None:
    """Choose between ``"gzip"`` and ``"identity"`` by RFC 9110, section 12.5.3.

    ``accept_encoding`` is the header's value, its lines joined with commas, None where it was
    not sent: then a page goes out as it is, for whoever does not ask cannot be relied on to
    decompress. gzip is chosen where it is accepted and ``identity`` not preferred. Returns None
    where neither is acceptable. Elements that cannot be understood are ignored.
    """
    if accept_encoding is None:
        return "identity"
    weights = dict(filter(None, map(_weight, accept_encoding.split(","))))
    others = weights.get("*")
    gzip_weight = weights.get("gzip", weights.get("x-gzip", others))
    identity_weight = weights.get("identity", others)
    if gzip_weight and gzip_weight >= (identity_weight or 0):
        return "gzip"
    return None if identity_weight == 0 else "identity"


def _weight(element: str) -> tuple[str, float] | None:
    match = _CODING.fullmatch(element.strip())
    return match and (match[1].lower(), float(match[2] or 1))
