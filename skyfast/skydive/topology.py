"""Polls the topology API of the analyzers.

The responses go to :mod:`skyfast.skydive.interfaces` and :mod:`skyfast.skydive.name_index`. This
module is independent of flows, so that failures of the topology API cannot affect them.
"""

import asyncio
import logging
import ssl
import time
import zlib
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Final

from skyfast.config.model import Config
from skyfast.runtime.logs import LogLimit, printable
from skyfast.skydive import topology_nodes
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
from skyfast.skydive.interfaces import Interfaces
from skyfast.skydive.name_index import DefaultEmptyDict, NameIndex
from skyfast.skydive.tls import client_context
from skyfast.skydive.topology_nodes import Answer, MalformedAnswerError
from skyfast.stats import Failure, TopologyStats

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("skyfast.topology")

PATH: Final = "/api/topology"
"""Path of the topology API, below the prefix of the analyzer's URL."""

QUERY: Final = "G.V().Has('EncapType', 'ether')"
"""The Gremlin query for the exported network interfaces."""

QUERY_WITH_NAMES: Final = (
    "G.V().HasEither('EncapType', Ne(''), 'Type', 'ovsbridge', 'Type', 'ovsport')"
)
"""The Gremlin query for these and all other nodes that have addresses or can be captured.

These are all Linux devices, because loopback and tunnels have other ``EncapType``s (``loopback``,
``gre``, ``sit``, ``none``, …), and Open vSwitch bridges and ports, which have none: see
``CaptureTypes`` in Skydive's ``flow/probes/capabilities.go``. Requires Skydive 0.21."""

NAMES_INTERVAL_S: Final = 20.0
"""Polling interval for names if interface metrics are disabled."""

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Maximum size of a response, before and after decompression: about 20,000 real interfaces.

This is a security limit: a response may be a gzip bomb."""

REQUEST_TIMEOUT_S: Final = 10.0
"""Timeout of a query, including a login. Then the next analyzer is queried."""


class _QueryError(Exception):
    """A query of an analyzer failed; ``reason`` is one of ``TOPOLOGY_ERRORS``."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class TopologyPoller:
    """Periodically queries the interfaces, and the names if they are used.

    The analyzers of ``config.subscriber.endpoints`` are queried in order until one responds. The
    next poll starts with that one. If a name resolves to several addresses, only one of them is
    queried, because every analyzer knows the whole topology.
    """

    def __init__(
        self,
        *,
        config: Config,
        interfaces: Interfaces,
        stats: TopologyStats,
        now: Callable[[], float],
        names: NameIndex | None = None,
        renamed: Callable[[DefaultEmptyDict, Set[str]], object] | None = None,
    ) -> None:
        """Create the poller; ``now`` is the clock of ``interfaces`` and ``names``, in seconds.

        Without ``names``, only interfaces are polled. ``renamed`` is called on the event loop for
        each changed mapping of ``names``, with the changed keys.

        Raises:
            ConfigError: An analyzer uses TLS, and a file in ``config.tls`` is unusable.

        """
        endpoints = config.subscriber.endpoints
        uses_tls = any(endpoint.secure for endpoint in endpoints)
        context = client_context(config.tls) if uses_tls else None
        interval_s = config.topology.interfaces_interval_s
        self._interfaces = interfaces if interval_s else None
        self._names = names
        self._renamed = renamed
        self._gremlin = QUERY_WITH_NAMES if names else QUERY
        self._interval_s = interval_s or (NAMES_INTERVAL_S if names else 0.0)
        self._stats = stats
        self._now = now
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

    async def run(self) -> None:
        """Poll at once, and then once per interval, until cancelled.

        The interval is ``interfaces_interval_s``, or `NAMES_INTERVAL_S` if that is 0. Returns at
        once if neither interfaces nor names are used. Failures of analyzers are not raised.
        """
        if not self._interval_s:
            return
        import aiohttp

        clock = asyncio.get_running_loop().time
        async with aiohttp.ClientSession(
            # A kept connection would time out before the next request, and POST is not retried.
            connector=http_connector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            # A few kilobytes can decompress to gigabytes: see `_gunzip`.
            auto_decompress=False,
        ) as session:
            begun = clock()
            while True:
                await self._refresh(session)
                await asyncio.sleep(self._interval_s - (clock() - begun) % self._interval_s)

    async def _refresh(self, session: "aiohttp.ClientSession") -> None:
        """Query one analyzer after the other until one responds."""
        preferred = self._preferred
        for analyzer in sorted(self._analyzers, key=lambda analyzer: analyzer is not preferred):
            try:
                await self._ask(session, analyzer)
            except _QueryError as error:
                self._failed(analyzer.endpoint.name, error.reason, str(error))
            except Exception as error:
                # A bug must not end the process: flows are exported without interfaces too.
                log.debug("analyzer %s: unexpected error", analyzer.endpoint.name, exc_info=True)
                self._failed(analyzer.endpoint.name, "error", f"{type(error).__name__}: {error}")
            else:
                if analyzer is not self._preferred:
                    log.info("analyzer %s: using its topology", analyzer.endpoint.name)
                self._preferred = analyzer
                return

    async def _ask(self, session: "aiohttp.ClientSession", analyzer: Authentication) -> None:
        """Query one analyzer and apply the response.

        Raises:
            _QueryError: The query failed.

        """
        import aiohttp

        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                body, encoding = await self._query(session, analyzer)
        except TimeoutError:
            raise _QueryError("timeout", f"no response within {REQUEST_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            text = connection_error(error)
            if isinstance(error, aiohttp.ServerDisconnectedError) and not analyzer.endpoint.secure:
                text += USE_TLS
            elif isinstance(error.__cause__, ssl.SSLError):
                # aiohttp's message contains the address of an object.
                not_tls = error.__cause__.reason in NOT_TLS
                text = f"{error.__cause__}{USE_PLAIN if not_tls else ''}"
            raise _QueryError("unreachable", text) from None
        except aiohttp.ClientError as error:
            raise _QueryError("malformed", str(error) or type(error).__name__) from None
        # This takes up to a second for 20,000 interfaces. Decompression releases the GIL, decoding
        # holds it for up to 0.13 s, and the rest is interruptible Python code.
        now = self._now()
        answer = await asyncio.to_thread(_decoded, body, encoding)
        if self._names is not None:
            await self._update_names(self._names, answer, now)
        if self._interfaces is not None:
            if self._names is not None:
                answer = _only_interfaces(answer)
            await asyncio.to_thread(self._interfaces.update, answer, now)
        self._stats.answers += 1
        self._stats.last_answer_timestamp_s = time.time()

    async def _update_names(self, names: NameIndex, answer: Answer, now: float) -> None:
        changes = await asyncio.to_thread(names.compare, answer.nodes, now)
        if changes.left_out:
            text = "topology too large: %d nodes and addresses ignored"
            self._limit.warn(log, "left_out", text, changes.left_out)
        for lookup, keys in names.apply(changes):
            if self._renamed is not None:
                self._renamed(lookup, keys)

    async def _query(
        self, session: "aiohttp.ClientSession", analyzer: Authentication
    ) -> tuple[bytes, str]:
        """Return the undecoded body of a response, and its ``Content-Encoding``."""
        credentials = analyzer.headers()
        status, body, encoding = await _post(session, analyzer, self._gremlin, credentials)
        if status == 401 and await analyzer.reauthenticate(credentials):
            status, body, encoding = await _post(
                session, analyzer, self._gremlin, analyzer.headers()
            )
        match status:
            case 200:
                return body, encoding
            case 401:
                problem = analyzer.problem or "still rejected after a login"
                raise _QueryError("unauthorized", f"HTTP 401; {problem}")
            case 403:
                raise _QueryError("forbidden", "HTTP 403: user not allowed to read the topology")
            case 400 if not analyzer.endpoint.secure:
                raise _QueryError("status", f"HTTP {status}{USE_TLS}")
            case _:
                raise _QueryError("status", f"HTTP {status}")

    def _failed(self, analyzer: str, reason: str, text: str) -> None:
        self._stats.errors[reason] += 1
        text = f"analyzer {analyzer}: topology query failed: {printable(text)}"
        self._stats.last_failure = Failure(reason, text)
        self._limit.warn(log, (analyzer, reason), text)


async def _post(
    session: "aiohttp.ClientSession", analyzer: Authentication, query: str, credentials: Headers
) -> tuple[int, bytes, str]:
    """Send a query; return the status, the undecoded body of a 200, and ``Content-Encoding``."""
    async with analyzer.post(
        session,
        PATH,
        json={"GremlinQuery": query},
        headers=[("Accept-Encoding", "gzip"), *credentials],
    ) as response:
        if response.status in REDIRECTS:
            location = response.headers.get("Location", "")
            raise _QueryError("status", f"HTTP {response.status}{redirect(location)}")
        if response.status != 200:
            return response.status, b"", ""
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise _too_big()
        return response.status, bytes(body), response.headers.get("Content-Encoding", "")


def _decoded(body: bytes, encoding: str) -> Answer:
    """Decode a response with the given ``Content-Encoding``. Runs in a worker thread."""
    match encoding.lower():
        case "" | "identity":
            pass
        case "gzip":
            body = _gunzip(body)
        case _:
            raise _QueryError("malformed", f"Content-Encoding {encoding!r} was not requested")
    try:
        return topology_nodes.read(body)
    except MalformedAnswerError as error:
        raise _QueryError("malformed", str(error)) from None


def _only_interfaces(answer: Answer) -> Answer:
    """Return the nodes of a `QUERY_WITH_NAMES` response that `QUERY` would have returned."""
    ether = [node for node in answer.nodes if node.metadata.encap_type == "ether"]
    return Answer(ether, answer.invalid)


def _gunzip(body: bytes) -> bytes:
    """Decompress a response up to the size limit."""
    unpacker = zlib.decompressobj(wbits=31)  # 31 is gzip
    try:
        answer = unpacker.decompress(body, MAX_ANSWER_BYTES + 1)
    except zlib.error as error:
        raise _QueryError("malformed", str(error)) from None
    if len(answer) > MAX_ANSWER_BYTES:
        raise _too_big()
    if not unpacker.eof:
        raise _QueryError("malformed", "truncated gzip data")
    return answer


def _too_big() -> _QueryError:
    return _QueryError("too_big", f"response larger than {MAX_ANSWER_BYTES} bytes")
