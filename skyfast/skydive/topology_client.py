"""Sends queries to the topology API of the analyzers.

To save memory, a response is decompressed, split into its elements and decoded while it arrives.
The GIL is never held for longer than the decoding of one element takes.
"""

import asyncio
import importlib
import logging
import ssl
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from skyfast.config.model import Config
from skyfast.runtime.logs import LogLimit, printable
from skyfast.skydive._json_split import ArraySplitter
from skyfast.skydive.auth import (
    NOT_TLS,
    REDIRECTS,
    USE_PLAIN,
    USE_TLS,
    Authentication,
    Headers,
    connection_error,
    http_connector,
    redirect,
)
from skyfast.skydive.tls import client_context
from skyfast.skydive.topology_nodes import MAX_ELEMENT_BYTES
from skyfast.skydive.topology_queries import Query
from skyfast.stats import Failure, TopologyStats

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("skyfast.topology")

PATH: Final = "/api/topology"

MAX_RESPONSE_BYTES: Final = 128 * 1024 * 1024
"""Maximum size of a response, before and after decompression. About 40,000 real interfaces fit.

This is a security limit: a response may be a gzip bomb."""

REQUEST_TIMEOUT_S: Final = 10.0
"""Maximum time from the start of a query until the response headers arrive, including a login after
HTTP 401.

After this time, the next analyzer is queried."""

BODY_TIMEOUT_S: Final = 30.0
"""Timeout of receiving and decoding the body of a response."""

BATCH_BYTES: Final = 256 * 1024
"""Minimum number of received bytes in a batch. A worker thread decodes one batch at a time."""

PIECE_BYTES: Final = 1024 * 1024
"""Maximum size of the decompressed text that is split in one call."""


class Reader(Protocol):
    """Decodes the elements of one response, in order. Its methods are called in a worker thread."""

    def add(self, element: bytes, /) -> None:
        """Raises MalformedResponseError if the whole response is unusable."""

    def skip(self, count: int, /) -> None:
        """Add ``count`` to the number of elements that were too long to be decoded."""


class Observer(Protocol):
    """Gets a copy of the elements of one response, for example to record them."""

    def add(self, element: bytes, /) -> None:
        """Must not raise; called in a worker thread."""

    def end(self) -> None:
        """Called after the last element of a complete response."""


R = TypeVar("R", bound=Reader)


class QueryError(Exception):
    """A query of an analyzer failed; ``reason`` is one of ``TOPOLOGY_ERRORS``."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class TopologyClient:
    """Queries the analyzers of ``config.subscriber.endpoints`` in order until one responds.

    The next query starts with the analyzer that responded. If a name resolves to several addresses,
    only one of them is queried, because every analyzer knows the whole topology.

    Use the client as an asynchronous context manager. Several tasks may send queries at the same
    time.
    """

    def __init__(
        self,
        *,
        config: Config,
        stats: TopologyStats,
        observe: Callable[[Query], Observer] | None = None,
    ) -> None:
        """Opens no sockets, and needs no event loop.

        ``observe`` is called with each query. It returns an observer, which gets a copy of the
        response.

        Raises:
            ConfigError: An analyzer uses TLS, and a file in ``config.tls`` is unusable.

        """
        endpoints = config.subscriber.endpoints
        uses_tls = any(endpoint.secure for endpoint in endpoints)
        context = client_context(config.tls) if uses_tls else None
        self._stats = stats
        self._observe = observe
        self._analyzers = [
            Authentication(
                endpoint=endpoint,
                credentials=config.credentials,
                cookies=config.cookies,
                ssl=context,
            )
            for endpoint in endpoints
        ]
        self._preferred: Authentication | None = None
        self._limit = LogLimit()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # The import takes up to 0.3 s. Meanwhile, the event loop continues.
        aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
        self._session = aiohttp.ClientSession(
            # Close connections after each query: an open connection would time out before the next
            # query, and aiohttp does not retry a POST.
            connector=http_connector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            # `_Elements` decompresses the response, and limits the decompressed size.
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(self, query: Query, make_reader: Callable[[], R]) -> R | None:
        """Send ``query``; return the reader of the response, or None if no analyzer responded.

        Each queried analyzer gets a new reader. Failures are counted and logged, but not raised.
        """
        preferred = self._preferred
        for analyzer in sorted(self._analyzers, key=lambda analyzer: analyzer is not preferred):
            reader = make_reader()
            observer = self._observe(query) if self._observe else None
            try:
                await self._ask(analyzer, query, _Elements(reader, observer))
            except QueryError as error:
                self._failed(analyzer.endpoint.name, error.reason, str(error))
            except Exception as error:
                log.debug("analyzer %s: unexpected error", analyzer.endpoint.name, exc_info=True)
                self._failed(analyzer.endpoint.name, "error", f"{type(error).__name__}: {error}")
            else:
                if analyzer is not self._preferred:
                    log.info(
                        "analyzer %s: the topology is now read from this analyzer",
                        analyzer.endpoint.name,
                    )
                self._preferred = analyzer
                if observer is not None:
                    observer.end()
                return reader
        return None

    def unexpected(self, error: Exception) -> None:
        """Count and log an exception that was raised while a response was processed.

        The exception must not end the process, because flows can be exported without the topology.
        """
        analyzer = self._preferred.endpoint.name if self._preferred else ""
        log.debug("analyzer %s: unexpected error", analyzer, exc_info=error)
        self._failed(analyzer, "error", f"{type(error).__name__}: {error}")

    async def _ask(self, analyzer: Authentication, query: Query, elements: "_Elements") -> None:
        import aiohttp

        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S) as deadline:
                await self._query(analyzer, query, elements, deadline)
        except TimeoutError:
            if elements.has_begun:
                raise QueryError(
                    "timeout", f"incomplete response after {BODY_TIMEOUT_S:g} s"
                ) from None
            raise QueryError("timeout", f"no response within {REQUEST_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            text = connection_error(error)
            if isinstance(error, aiohttp.ServerDisconnectedError) and not analyzer.endpoint.secure:
                text += USE_TLS
            elif isinstance(error.__cause__, ssl.SSLError):
                # Use the message of the cause: aiohttp's message contains the memory address of an
                # object.
                not_tls = error.__cause__.reason in NOT_TLS
                text = f"{error.__cause__}{USE_PLAIN if not_tls else ''}"
            raise QueryError("unreachable", text) from None
        except aiohttp.ClientError as error:
            raise QueryError("malformed", str(error) or type(error).__name__) from None

    async def _query(
        self,
        analyzer: Authentication,
        query: Query,
        elements: "_Elements",
        deadline: asyncio.Timeout,
    ) -> None:
        credentials = analyzer.headers()
        status = await self._post(analyzer, query, credentials, elements, deadline)
        if status == 401 and await analyzer.reauthenticate(credentials):
            status = await self._post(analyzer, query, analyzer.headers(), elements, deadline)
        match status:
            case 200:
                pass
            case 401:
                problem = analyzer.problem or "still rejected after a login"
                raise QueryError("unauthorized", f"HTTP 401; {problem}")
            case 403:
                raise QueryError("forbidden", "HTTP 403: user not allowed to read the topology")
            case 400 if not analyzer.endpoint.secure:
                raise QueryError("status", f"HTTP {status}{USE_TLS}")
            case _:
                raise QueryError("status", f"HTTP {status}")

    async def _post(
        self,
        analyzer: Authentication,
        query: Query,
        credentials: Headers,
        elements: "_Elements",
        deadline: asyncio.Timeout,
    ) -> int:
        """Return the HTTP status. If the status is 200, the response has been read."""
        if self._session is None:
            raise RuntimeError("the client is closed")
        async with analyzer.post(
            self._session,
            PATH,
            json={"GremlinQuery": query.gremlin},
            headers=[("Accept-Encoding", "gzip"), *credentials],
        ) as response:
            if response.status in REDIRECTS:
                location = response.headers.get("Location", "")
                raise QueryError("status", f"HTTP {response.status}{redirect(location)}")
            if response.status == 200:
                deadline.reschedule(asyncio.get_running_loop().time() + BODY_TIMEOUT_S)
                elements.begin(response.headers.get("Content-Encoding", ""))
                await _read(response.content, elements)
            return response.status

    def _failed(self, analyzer: str, reason: str, text: str) -> None:
        self._stats.errors[reason] += 1
        text = f"analyzer {analyzer}: topology query failed: {printable(text)}"
        self._stats.last_failure = Failure(reason, text)
        self._limit.warn(log, (analyzer, reason), text)


async def _read(content: "aiohttp.StreamReader", elements: "_Elements") -> None:
    """Read the body. Worker threads decompress and decode it, one batch at a time."""
    batch = bytearray()
    received = 0
    async for chunk in content.iter_any():
        batch += chunk
        received += len(chunk)
        if received > MAX_RESPONSE_BYTES:
            raise _too_big()
        if len(batch) >= BATCH_BYTES:
            await asyncio.to_thread(elements.feed, bytes(batch))
            batch.clear()
    await asyncio.to_thread(elements.end, bytes(batch))


class _Elements:
    """Decompresses and splits the body of a response, and passes its elements to the reader."""

    def __init__(self, reader: Reader, observer: Observer | None) -> None:
        self._reader = reader
        self._observer = observer
        self._splitter = ArraySplitter(max_element_bytes=MAX_ELEMENT_BYTES)
        self._unpacker: zlib._Decompress | None = None
        self._capacity = MAX_RESPONSE_BYTES
        self.has_begun = False

    def begin(self, encoding: str) -> None:
        self.has_begun = True
        match encoding.lower():
            case "" | "identity":
                pass
            case "gzip":
                self._unpacker = zlib.decompressobj(wbits=31)  # 31: gzip format
            case _:
                text = f"the response has Content-Encoding {encoding!r}, which was not requested"
                raise QueryError("malformed", text)

    def feed(self, data: bytes) -> None:
        """Decode the next part of the body, in a worker thread.

        Raises:
            QueryError: The response is malformed or too big.

        """
        unpacker = self._unpacker
        if unpacker is None:
            self._split(data)
            return
        while data:
            try:
                # The size is limited, because a few kilobytes can decompress to gigabytes.
                text = unpacker.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise QueryError("malformed", str(error)) from None
            self._split(text)
            data = unpacker.unconsumed_tail

    def end(self, data: bytes) -> None:
        """Decode the last part of the body, in a worker thread.

        Raises:
            QueryError: The response is malformed or too big.

        """
        self.feed(data)
        if self._unpacker is not None:
            self._split(self._unpacker.flush())
            if not self._unpacker.eof:
                raise QueryError("malformed", "truncated gzip data")
        try:
            self._splitter.close()
        except ValueError as error:
            raise QueryError("malformed", str(error)) from None
        self._reader.skip(self._splitter.skipped)

    def _split(self, text: bytes) -> None:
        self._capacity -= len(text)
        if self._capacity < 0:
            raise _too_big()
        try:
            for element in self._splitter.feed(text):
                self._reader.add(element)
                if self._observer is not None:
                    self._observer.add(element)
        except ValueError as error:  # includes MalformedResponseError
            raise QueryError("malformed", str(error)) from None


def _too_big() -> QueryError:
    return QueryError("too_big", f"response larger than {MAX_RESPONSE_BYTES} bytes")
