"""The HTTP server: who is answered what, for how long, and how many at once.

aiohttp parses and frames; every bound is kept here. A connection has exactly one deadline at
any time, for a request's head, for its answer, or for the next request, and is closed when that
passes. What a page consists of is the business of :mod:`skyfast.web.exposition`.
"""

import asyncio
import contextlib
import errno
import logging
import math
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from skyfast import __version__
from skyfast.config.model import Config, Web
from skyfast.config.parsers import Address
from skyfast.runtime.logs import LogLimit, printable
from skyfast.stats import ScrapeStats
from skyfast.web import cardinality, exposition, status
from skyfast.web import html as markup
from skyfast.web import status_html as statuspage
from skyfast.web.exposition import OPENMETRICS, TEXT_FORMAT, Exposition, Part
from skyfast.web.listen import AS_CONFIGURED, Listen, ListenError, bound, configured
from skyfast.web.status import Status
from skyfast.web.top import PARAMETERS, BusyError, QueryError

if TYPE_CHECKING:
    from skyfast.web.config_file import Guard

HEAD_TIMEOUT_S = 5.0
"""For a request's head: from its first byte, for the first one from the connection's start.

With TLS, that is where the handshake starts."""

IDLE_TIMEOUT_S = 330.0
"""For the next request to begin on a connection that was answered.

Longer than any usual scrape interval: with one of 60 s, a time-out of as much closes the connection
while the next request is on its way. Connections that wait are the first to be closed where
``web.max_connections`` are open."""

ANSWER_TIMEOUT_S = 10.0
"""For an answer that is no page."""

RANKING_TIMEOUT_S = 5.0
"""For the busiest connections on the status page, which comes without them otherwise."""

MAX_STATUS_PAGES = 8
"""Status pages that are being made at once; more are refused, to be asked for again."""

MAX_SCRAPE_TIMEOUT_S = 600.0
"""The longest deadline of a page that a scraper can ask for."""

BODY_TIMEOUT_S = 1.0
"""How long a request's body is read and thrown away before its connection is closed."""

STOP_TIMEOUT_S = 1.0
"""For everything to end that :meth:`WebServer.stop` has cut."""

MAX_REQUEST_BYTES = 64 * 1024
"""What a client may send without being answered: head, body and pipelined requests.

This is a security limit. It is looked at before each read, which brings up to 256 KiB. Where it is
the head of a request that is longer, the answer is 431."""

MAX_LINE_BYTES = 4096
"""Longest request line; beyond it the answer is 414."""

MAX_FIELD_BYTES = 8190
"""Longest header; beyond it the answer is 431."""

MAX_HEADERS = 128
"""Headers of a request; beyond it the answer is 431, too."""

DISCARD_TIMEOUT_S = 1.0
"""Time during which the rest of an invalid request is discarded...

Closing a socket with unread data resets the connection, and the client never sees the answer."""

MAX_DISCARDED_BYTES = 1024 * 1024
"""... and how much of it."""

WRITE_BUFFER_BYTES = 64 * 1024
"""Where so much waits for the kernel to take it, nothing more of a page is written."""

TLS_CLOSE_TIMEOUT_S = 0.5
"""For a client's own goodbye, before the connection under TLS is closed without it."""

FEW_DESCRIPTORS = 8
"""Where no more than so many can be left, that is logged.

It is too late once there is none: the event loop closes a connection then, and tells nobody."""

ACCEPT_PAUSE_S = 0.1
"""After a connection could not be taken, for example because no descriptor is free."""

BACKLOG = 256
"""Connections that the kernel accepts while the event loop is busy with other things."""

CHALLENGE = 'Basic realm="skyfast", charset="UTF-8"'
"""What a client is told that has to authenticate."""

PLAIN_HTTP = "plain HTTP request on an HTTPS port"
"""The reason in the answer to a client that does not use TLS."""

FORBIDDEN = "the certificate has no allowed name"
"""The reason in the answer to a client without any of ``client_allowed_sans``."""

RETRY_AFTER_S = 1
"""What a client is told that found too many pages being served."""

LOG_INTERVAL_S = 60.0
"""What clients do to the server is logged once in this time, for each kind of event."""

SCRAPE_TIMEOUT_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"

PAGES = {
    "/metrics": Part.ALL,
    "/metrics/flows": Part.FLOWS,
    "/metrics/interfaces": Part.INTERFACES,
    "/metrics/captures": Part.CAPTURES,
    "/metrics/self": Part.SELF,
}

_AIOHTTP: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,  # bodies are thrown away
    "keepalive_timeout": 24 * 3600,  # never reached: IDLE_TIMEOUT_S is
    "lingering_time": BODY_TIMEOUT_S,
    "max_field_size": MAX_FIELD_BYTES,
    "max_headers": MAX_HEADERS,
    "max_line_size": MAX_LINE_BYTES,
}

_READING = (hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS)
_ACTING = (hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_OPTIONS)
_HEALTH = ("/-/healthy", "/-/ready")
_METHODS = {
    **dict.fromkeys((*PAGES, "/", "/cardinality", "/api/status", "/api/top", *_HEALTH), _READING),
    "/-/reload": _ACTING,
    "*": _READING,  # of OPTIONS alone: RFC 9110, section 7.1
}

# A socket that is closed with a linger time of zero resets its connection. So no client takes
# the beginning of a page for the whole, not even one of HTTP/1.0, to which the end of the
# connection is the end of the page.
_LINGER_ZERO = struct.pack("ii", 1, 0)

# What binding says where the kernel, or the machine, has no IPv6; `localhost` may still name it.
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

Reload = Callable[[], Awaitable[str | None]]
"""Reads the configuration again, and returns what is wrong with it where that was not possible."""

log = logging.getLogger("skyfast.web")


class WebServer:
    """Serves the pages, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        *,
        config: Config,
        exposition: Exposition,
        status: Status,
        ready: Callable[[], bool],
        stats: ScrapeStats,
        reload: Reload | None = None,
        guard: "Guard | None" = None,
        listen_at: Listen = AS_CONFIGURED,
    ) -> None:
        """Prepare to serve ``exposition`` and ``status``.

        ``ready`` tells whether there is a subscription.

        ``reload`` is what ``/-/reload`` calls; None where that is not enabled. ``guard`` has TLS
        and users; without it, everybody is answered. It ends with the server.

        ``listen_at`` says where it listens, where that is not the configuration's address.
        """
        self._listen_at = listen_at
        self.addresses = list(listen_at.addresses) or [configured(config)]
        """What is listened on; before :meth:`start`, with the port 0 where it is any."""
        self._limits = config.web
        self._reload = reload
        self._guard = guard
        self._exposition = exposition
        self._status = status
        self._ready = ready
        self._stats = stats
        self._scrapers: Counter[str] = Counter()
        self._status_pages = 0
        # Python itself writes them: two threads that do would keep the event loop waiting twice
        # as long for each of its turns, and the others of the loop's own threads from theirs.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="skyfast-status")
        self._connections = HttpConnections(limit=config.web.max_connections, stats=stats)
        self._servers: list[asyncio.Server] = []
        self._acceptors: list[asyncio.Task[None]] = []
        self._answers: set[asyncio.Task[Any]] = set()
        self._log_limit = LogLimit(LOG_INTERVAL_S)

    @property
    def port(self) -> int:
        """The first port of `addresses`."""
        return self.addresses[0].port

    def configure(self, limits: Web, *, reload: Reload | None) -> None:
        """Serve by other bounds from now on; what was begun keeps those that it had."""
        self._limits = limits
        self._connections.limit = limits.max_connections
        self._reload = reload

    async def start(self) -> None:
        """Listen. Raises ListenError where an address or its port cannot be had."""
        loop = asyncio.get_running_loop()
        manager = web.Server(self._answer, request_factory=make_request, handler_cancellation=True)
        listeners = await self._listen()
        for listener in listeners:
            if self._guard is not None and self._guard.config.tls is not None:
                accepting = self._accept(listener, manager, self._guard)
                self._acceptors.append(asyncio.create_task(accepting))
                continue
            server = await loop.create_server(
                lambda: HttpConnection(manager, loop=loop, connections=self._connections),
                sock=listener,
                backlog=BACKLOG,
            )
            self._servers.append(server)

    async def _listen(self) -> list[socket.socket]:
        """Return all sockets, and note where they listen."""
        if self._listen_at.sockets:
            self.addresses = [bound(each) for each in self._listen_at.sockets]
            return list(self._listen_at.sockets)
        listeners: list[socket.socket] = []
        for i, address in enumerate(self.addresses):
            try:
                try:
                    found = await _listen(address.host, address.port)
                except OSError as error:
                    if error.errno != errno.EADDRINUSE or not self._listen_at.any_port:
                        raise
                    found = await _listen(address.host, 0)
            except OSError as error:
                for listener in listeners:
                    listener.close()
                raise ListenError(error, address) from None
            self.addresses[i] = Address(address.host, bound(found[0]).port)
            listeners += found
        return listeners

    async def stop(self) -> None:
        """Close every connection, within ``STOP_TIMEOUT_S``. A page in the middle is cut."""
        for server in self._servers:
            server.close()
        for acceptor in self._acceptors:
            acceptor.cancel()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._connections.close()
                if self._answers:
                    await asyncio.wait(self._answers)
        except TimeoutError:
            log.warning("the HTTP server stops with %d requests unanswered", len(self._answers))
        self._writer.shutdown(wait=False, cancel_futures=True)
        if self._guard is not None:
            self._guard.close()

    async def _accept(self, listener: socket.socket, manager: web.Server, guard: "Guard") -> None:
        """Take connections that are to be secured.

        A server of the event loop's would have one context for all of them, and would not tell of
        those in the middle of a handshake, which have to be counted too.
        """
        loop = asyncio.get_running_loop()
        with listener:
            listener.listen(BACKLOG)
            listener.setblocking(False)
            while True:
                try:
                    client, _ = await loop.sock_accept(listener)
                except OSError as error:
                    self._log_limit.warn(log, "accept", f"cannot take a connection: {error}")
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                connection = HttpConnection(manager, loop=loop, connections=self._connections)
                connection.secure(client, guard)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, to the last byte: aiohttp has nothing left to send."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)
        connection = cast(HttpConnection, request.protocol)
        connection.answering(ANSWER_TIMEOUT_S)
        if request.version < HttpVersion11 or hdrs.UPGRADE in request.headers:
            connection.close()
        try:
            refusal = await self._refusal(request, connection)
            response = refusal if refusal is not None else await self._respond(request, connection)
            if not response.prepared:
                response.headers.update(self._configured_headers())
            await response.prepare(request)
            await response.write_eof()
        finally:
            connection.answered()
        return response

    async def _refusal(
        self, request: web.BaseRequest, connection: "HttpConnection"
    ) -> web.Response | None:
        """Return the answer to a request that is not to be answered, or None."""
        if self._guard is None:
            return None
        if connection.is_forbidden:
            response = text_response(f"Forbidden: {FORBIDDEN}.", HTTPStatus.FORBIDDEN)
            response.force_close()
            return response
        refusal = await self._guard.judge(
            request.headers.get(hdrs.AUTHORIZATION),
            connection.address,
            public=self._limits.health_without_auth and request.path in _HEALTH,
        )
        if refusal is None:
            return None
        response = text_response(f"{refusal.status.phrase}.", refusal.status)
        if refusal.status is HTTPStatus.UNAUTHORIZED:
            response.headers[hdrs.WWW_AUTHENTICATE] = CHALLENGE
        elif refusal.retry_after_s is not None:
            response.headers[hdrs.RETRY_AFTER] = str(refusal.retry_after_s)
        return response

    def _configured_headers(self) -> Mapping[str, str]:
        return {} if self._guard is None else self._guard.config.headers

    async def _respond(
        self, request: web.BaseRequest, connection: "HttpConnection"
    ) -> web.StreamResponse:
        methods = _METHODS.get(request.path)
        if methods is None:
            return text_response("There is no such page.", HTTPStatus.NOT_FOUND)
        if request.method == hdrs.METH_OPTIONS:
            headers = response_headers({hdrs.ALLOW: ", ".join(methods)})
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)
        if request.method not in methods:
            response = text_response(f"Only {', '.join(methods)}.", HTTPStatus.METHOD_NOT_ALLOWED)
            response.headers[hdrs.ALLOW] = ", ".join(methods)
            return response
        if request.path in PAGES:
            return await self._page(request, connection, PAGES[request.path])
        match request.path:
            case "/":
                return await self._status_page(request)
            case "/api/status":
                return await self._api_status(request)
            case "/api/top":
                return await self._api_top(request)
            case "/cardinality":
                return await self._cardinality(request)
            case "/-/reload":
                return await self._reloaded()
            case "/-/ready" if not self._ready():
                return text_response(
                    "Not ready: no analyzer is subscribed to.", HTTPStatus.SERVICE_UNAVAILABLE
                )
            case "/-/ready":
                return text_response("skyfast is ready.")
        return text_response("skyfast is healthy.")

    async def _reloaded(self) -> web.Response:
        """Answer as Prometheus does."""
        if self._reload is None:
            return text_response("Lifecycle API is not enabled.", HTTPStatus.FORBIDDEN)
        # To its end, whoever asked for it and does not wait.
        task = asyncio.ensure_future(self._reload())
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)
        error = await asyncio.shield(task)
        if error is not None:
            return text_response(
                f"failed to reload config: {error}", HTTPStatus.INTERNAL_SERVER_ERROR
            )
        return text_response("The configuration was reloaded.")

    async def _status_page(self, request: web.BaseRequest) -> web.Response:
        """Return the page for browsers, who may add parameters of their own."""
        ranks = self._status.ranking
        parameters = [(name, text) for name, text in request.query.items() if name in PARAMETERS]
        try:
            query = ranks.query(parameters, n=statuspage.DEFAULT_ROWS)
        except QueryError as error:
            return text_response(str(error), HTTPStatus.BAD_REQUEST)
        if self._status_pages >= MAX_STATUS_PAGES:
            return try_again("other status pages are being made")
        self._status_pages += 1
        try:
            top = None
            with contextlib.suppress(BusyError, TimeoutError):
                async with asyncio.timeout(RANKING_TIMEOUT_S):
                    top = (await ranks.top(query)).top
            report = await self._status.report()
            # Some hundred rows take some ten milliseconds.
            text = await asyncio.get_running_loop().run_in_executor(
                self._writer, statuspage.as_html, report, ranks, query, top
            )
        finally:
            self._status_pages -= 1
        return html_response(text)

    async def _api_status(self, request: web.BaseRequest) -> web.Response:
        if request.query:
            return text_response("This page has no parameters.", HTTPStatus.BAD_REQUEST)
        return json_response(status.as_json(await self._status.report()))

    async def _api_top(self, request: web.BaseRequest) -> web.Response:
        ranks = self._status.ranking
        try:
            query = ranks.query(list(request.query.items()))
            return json_response((await ranks.top(query)).json)
        except QueryError as error:
            return text_response(str(error), HTTPStatus.BAD_REQUEST)
        except BusyError:
            return try_again("other rankings are being made")

    async def _cardinality(self, request: web.BaseRequest) -> web.Response:
        counts = self._exposition.source.cardinality
        label = request.query.get("without") or None
        if label is not None and label not in counts.labels:
            return text_response(
                f"There is no label {printable(label)}, but {', '.join(counts.labels)}.",
                HTTPStatus.BAD_REQUEST,
            )
        try:
            report = await counts.report(label)
        except cardinality.BusyError:
            return try_again("another report is being made")
        if wants_json(request):
            response = json_response(cardinality.as_json(report))
        else:
            response = html_response(cardinality.as_html(report))
        response.headers[hdrs.VARY] = hdrs.ACCEPT
        return response

    async def _page(
        self, request: web.BaseRequest, connection: "HttpConnection", part: Part
    ) -> web.StreamResponse:
        openmetrics = False
        vary: str = hdrs.ACCEPT_ENCODING
        if self._exposition.source.standard_names and self._limits.openmetrics:
            openmetrics = exposition.prefers_openmetrics(header_value(request, hdrs.ACCEPT))
            vary = f"{hdrs.ACCEPT}, {hdrs.ACCEPT_ENCODING}"
        headers = response_headers(
            {
                hdrs.CONTENT_TYPE: OPENMETRICS if openmetrics else TEXT_FORMAT,
                hdrs.VARY: vary,
                **self._configured_headers(),
            }
        )
        coding = exposition.encoding(header_value(request, hdrs.ACCEPT_ENCODING))
        if coding is None:
            response = text_response(
                "Pages come as they are or as gzip.", HTTPStatus.NOT_ACCEPTABLE
            )
            response.headers[hdrs.VARY] = vary
            return response
        if coding == "gzip":
            headers[hdrs.CONTENT_ENCODING] = coding
        if request.method == hdrs.METH_HEAD:
            # Nothing is written to it: aiohttp would send a body, and the client would take it
            # for the next answer.
            return web.StreamResponse(headers=headers)
        if part is Part.SELF:
            # Small, and not counted among the pages: it has to come when nothing else does.
            own = await self._exposition.own(openmetrics=openmetrics)
            body = exposition.compress(own) if coding == "gzip" else own
            return web.Response(body=body, headers=headers)
        if crowd := self._crowd(connection.address):
            self._stats.rejected += 1
            self._log_limit.warn(
                log, "crowd", f"a page was refused to {connection.address}: {crowd}"
            )
            return try_again(crowd)
        self._scrapers[connection.address] += 1
        try:
            return await self._stream(
                request, connection, web.StreamResponse(headers=headers), part
            )
        finally:
            self._scrapers -= Counter((connection.address,))

    def _crowd(self, address: str) -> str:
        """Return which bound on pages at once is reached, if one is."""
        if self._scrapers.total() >= self._limits.max_scrapes:
            return f"{self._limits.max_scrapes} pages are being served (web.max_scrapes)"
        if self._scrapers[address] >= self._limits.max_scrapes_per_address:
            return (
                f"{self._limits.max_scrapes_per_address} pages are being served to this address"
                " (web.max_scrapes_per_address)"
            )
        return ""

    async def _stream(
        self,
        request: web.BaseRequest,
        connection: "HttpConnection",
        response: web.StreamResponse,
        part: Part,
    ) -> web.StreamResponse:
        """Send a page. Whatever goes wrong once it has begun, the connection is cut."""
        timeout_s = _scrape_timeout_s(
            request.headers.get(SCRAPE_TIMEOUT_HEADER), default_s=self._limits.scrape_timeout_s
        )
        connection.answering(timeout_s)
        begin_s = time.perf_counter()
        page = self._exposition.stream(
            part,
            gzip=hdrs.CONTENT_ENCODING in response.headers,
            openmetrics=response.headers[hdrs.CONTENT_TYPE] == OPENMETRICS,
        )
        try:
            async with page:
                async for chunk in page:
                    await response.prepare(request)
                    await response.write(chunk)
                await response.prepare(request)
                await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            # The connection was lost: to the client, to its deadline, or to stop().
            if connection.late:
                self._log_limit.warn(
                    log,
                    "late",
                    f"a page to {connection.address} was cut after {timeout_s:g} s,"
                    f" with {page.page_bytes} bytes of it rendered",
                )
            self._stats.failures["deadline" if connection.late else "disconnected"] += 1
            raise
        except Exception:
            self._stats.failures["error"] += 1
            if response.prepared:
                connection.cut()
            raise
        if Part.FLOWS in part:
            self._stats.scrapes += 1
            self._stats.last_duration_s = time.perf_counter() - begin_s
            self._stats.last_bytes = page.page_bytes
        return response


class HttpConnections:
    """The open connections, of which there are ``limit`` at most."""

    def __init__(self, *, limit: int, stats: ScrapeStats) -> None:
        self.limit = limit
        self._stats = stats
        self._open: set[HttpConnection] = set()
        self._waiting: dict[HttpConnection, None] = {}  # not being answered, longest first
        self._closed = False
        self._log_limit = LogLimit(LOG_INTERVAL_S)

    def add(self, connection: "HttpConnection") -> None:
        """Let ``connection`` in.

        Where there are enough, the one that has waited longest for a request goes. So whoever
        opens connections and asks nothing cannot keep out those who ask.
        """
        if self._closed:
            connection.cut()
            return
        if len(self._open) >= self.limit:
            victim = next(iter(self._waiting), connection)
            self._stats.connections_rejected += 1
            self._log_limit.warn(
                log,
                "full",
                f"{self.limit} HTTP connections are open (web.max_connections):"
                f" one from {victim.address} was closed",
            )
            self.remove(victim)
            victim.shut()
            if victim is connection:
                return
        self._open.add(connection)
        self._waiting[connection] = None

    def count_descriptors(self, latest: int) -> None:
        """Warn where few can be left behind the ``latest``: all below that are taken."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = limit - 1 - latest
        if left <= FEW_DESCRIPTORS and limit != resource.RLIM_INFINITY:
            self._log_limit.warn(
                log,
                "descriptors",
                f"at most {max(left, 0)} file descriptors are left (LimitNOFILE):"
                " without any, connections are closed unanswered",
            )

    def handshake_failed(self, connection: "HttpConnection", reason: str, text: str) -> None:
        """Count and log that a client is not served because of TLS."""
        self._stats.handshakes_failed[reason] += 1
        suffix = self._log_limit.admit(("handshake", reason))
        if suffix is None:
            return
        line = f"TLS handshake failed for {connection.address}: {text}"
        if reason == "disconnected":
            # Monitoring of certificates and port scans end handshakes like this, too.
            log.info("%s%s", line, suffix)
        else:
            log.warning("%s%s", line, suffix)

    def remove(self, connection: "HttpConnection") -> None:
        """Forget ``connection``, known or not."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def answering(self, connection: "HttpConnection") -> None:
        """Keep ``connection``, which is being answered."""
        self._waiting.pop(connection, None)

    def answered(self, connection: "HttpConnection") -> None:
        """Put ``connection``, which was answered, behind those that wait longer."""
        if connection in self._open:
            self._waiting[connection] = None

    async def close(self) -> None:
        """Shut every connection, those to come too, and wait until they are lost."""
        self._closed = True
        connections = list(self._open)
        for connection in connections:
            connection.shut()
        if connections:
            await asyncio.wait([connection.lost for connection in connections])


class HttpConnection(web.RequestHandler):
    """A client's connection, with the one deadline that it has at any time."""

    def __init__(
        self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, connections: HttpConnections
    ) -> None:
        super().__init__(manager, loop=loop, **_AIOHTTP)
        self.address = ""
        self.late = False  # the deadline passed in the middle of an answer
        self.lost: asyncio.Future[None] = loop.create_future()
        self._connections = connections
        self._stream: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._guard: Guard | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._answering = False
        self._unanswered_bytes = 0
        self._discarded_bytes = -1  # not discarding
        self._cut = False
        self._expired = False
        self.is_forbidden = False
        """Whether the client's certificate has no allowed name."""

    def secure(self, client: socket.socket, guard: "Guard") -> None:
        """Begin with a handshake. The deadline of the first request's head is running by then."""
        self._guard = guard
        self._begin(_peer(client))
        if self._cut:
            self._handshake_over(client)
            return
        self._handshake = asyncio.create_task(self._shake_hands(client, guard))
        self._handshake.add_done_callback(lambda _: self._handshake_over(client))

    async def _shake_hands(self, client: socket.socket, guard: "Guard") -> None:
        from skyfast.web.handshakes import Handshake

        context = (await guard.refresh()).tls
        handshake = Handshake(client)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, client, ssl=context, ssl_shutdown_timeout=IDLE_TIMEOUT_S
            )
        except OSError as error:  # an `ssl.SSLError`, too
            reason, text = handshake.failure(error)
            if reason:
                self._connections.handshake_failed(self, reason, text)
            if reason == "plain_http":
                await handshake.answer(raw_response(HTTPStatus.BAD_REQUEST, PLAIN_HTTP))
            else:
                await handshake.answer(handshake.alert)
        except asyncio.CancelledError:
            if self._expired and handshake.first:
                text = f"timed out after {HEAD_TIMEOUT_S:g} s"
                self._connections.handshake_failed(self, "timeout", text)
            raise
        finally:
            handshake.close()

    def _handshake_over(self, client: socket.socket) -> None:
        if self._stream is None:
            client.close()
            self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._stream = cast(asyncio.Transport, transport)  # aiohttp forgets its own early
        self._stream.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if self._guard is None:
            self._connections.count_descriptors(transport.get_extra_info("socket").fileno())
            self._begin(transport.get_extra_info("peername"))
        elif not self._guard.admits(transport.get_extra_info("peercert")):
            # The handshake has succeeded, so no alert is possible: requests get HTTP 403.
            self.is_forbidden = True
            text = "client certificate has none of client_allowed_sans"
            self._connections.handshake_failed(self, "client_certificate", text)

    def _begin(self, peer: Any) -> None:
        # There is no peer where the client has reset the connection already. On a socket of both
        # IP versions, an IPv4 client's address is mapped into IPv6.
        self.address = peer[0].removeprefix("::ffff:") if peer else ""
        self._allow(HEAD_TIMEOUT_S)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._cut:
            return
        if self._discarded_bytes >= 0:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.cut()
            return
        if self._unanswered_bytes > MAX_REQUEST_BYTES:
            if self._waiter is not None:  # aiohttp waits for the end of a head
                text = f"a request's head is longer than {MAX_REQUEST_BYTES} bytes"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
            else:
                self.cut()
            return
        if data and not self._unanswered_bytes and not self._answering:
            self._allow(HEAD_TIMEOUT_S)
        self._unanswered_bytes += len(data)
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's returns None
        """Answer a client that has finished sending, and close where it has asked nothing.

        aiohttp closes in either case: with what has been sent of a page in good order.
        """
        if self._discarded_bytes >= 0:
            return False
        asked = self._answering or self._unanswered_bytes > 0
        if asked:
            self.close()  # once that is answered
        # TLS, as the event loops do it, has no connections that are closed in one direction.
        return asked and self._guard is None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end()
        super().connection_lost(exc)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._connections.remove(self)
        if not self.lost.done():
            self.lost.set_result(None)

    def answering(self, timeout_s: float) -> None:
        """Begin an answer, or change the time that it may take."""
        self._answering = True
        self._unanswered_bytes = 0
        self._connections.answering(self)
        self._allow(timeout_s)

    def answered(self) -> None:
        """End an answer, and wait for the next request."""
        self._answering = False
        self._connections.answered(self)
        self._allow(HEAD_TIMEOUT_S if self._unanswered_bytes else IDLE_TIMEOUT_S)

    def shut(self) -> None:
        """Close the connection: in good order where the client has all that it was sent."""
        if self._stream is None:
            self._leave()
        elif self._answering or self._stream.get_write_buffer_size():
            self.cut()
        else:
            self._stream.close()
            if self._guard is not None:
                # Which waits for the client's own goodbye.
                self._call_later(TLS_CLOSE_TIMEOUT_S, self._stream.abort)

    def cut(self) -> None:
        """Reset the connection."""
        self._cut = True
        if self.lost.done():
            return  # and its descriptor may be another's by now
        if self._stream is None:
            self._leave()
            return
        client = self._stream.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._stream.abort()

    def _leave(self) -> None:
        """Break off the handshake, or refuse it where it has not begun."""
        self._cut = True
        if self._handshake is not None:
            self._handshake.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse, and what a handler has raised.

        aiohttp's own logs a traceback for every request that is malformed.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            log.debug("a bad request from %s: %s", self.address, message)
            self._refuse(*_refusal_of(exc))
            raise ConnectionResetError("nothing more is read")
        log.error("%s %s failed", request.method, request.path, exc_info=exc)
        if self._cut:
            raise ConnectionResetError("the answer was cut")
        response = text_response(HTTPStatus(status).phrase + ".", status)
        response.force_close()
        return response

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer an invalid request, and close the connection after the client got the answer."""
        if self._cut or self._stream is None or self.lost.done():
            return
        self._force_close = True  # aiohttp parses nothing more and does not close the connection
        self._discarded_bytes = 0
        self._stream.write(raw_response(status, reason))
        if self._stream.can_write_eof():
            self._stream.write_eof()
        self._allow(DISCARD_TIMEOUT_S)

    def _allow(self, timeout_s: float) -> None:
        self._call_later(timeout_s, self._expire)

    def _call_later(self, delay_s: float, action: Callable[[], None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.lost.done():
            self._deadline = asyncio.get_running_loop().call_later(delay_s, action)

    def _expire(self) -> None:
        self.late = self._answering
        self._expired = True
        self.shut()


def _refusal_of(error: BaseException | None) -> tuple[HTTPStatus, str]:
    """Return the status and the reason for a request that aiohttp could not parse."""
    if isinstance(error, LineTooLong):
        if str(error.args[1]) == str(MAX_LINE_BYTES):
            return (
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"the request's line is longer than {MAX_LINE_BYTES} bytes",
            )
        return (
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"a header is longer than {MAX_FIELD_BYTES} bytes",
        )
    if isinstance(error, BadHttpMessage) and error.message.startswith("Too many headers"):
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEADERS} headers"
    return HTTPStatus.BAD_REQUEST, ""


def raw_response(status: HTTPStatus, reason: str = "") -> bytes:
    """Return a complete answer without aiohttp, which needs a request that it could parse."""
    body = f"{status.phrase}{f': {reason}' if reason else ''}.\n".encode()
    headers = {
        hdrs.CONTENT_TYPE: "text/plain; charset=utf-8",
        **response_headers({}),
        hdrs.CONTENT_LENGTH: str(len(body)),
        hdrs.CONNECTION: "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode() + body


def make_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """Make a request of one that was read; those of other versions become HTTP/1.0.

    aiohttp reads HTTP/0.9 and HTTP/2.0 where they look like HTTP/1, and would answer in them. It
    would keep HTTP/1.0 open behind a page, which only its end delimits, and promise that behind
    others, and would take what follows an ``Upgrade`` for another protocol.
    """
    if message.version not in {HttpVersion10, HttpVersion11}:
        message = message._replace(version=HttpVersion10)
    if message.version < HttpVersion11 or hdrs.UPGRADE in message.headers:
        message = message._replace(should_close=True)
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


def _peer(client: socket.socket) -> Any:
    try:
        return client.getpeername()
    except OSError:
        return None


def response_headers(more: dict[str, str]) -> dict[str, str]:
    """Return the headers of every answer, and ``more``. No answer may be cached."""
    return {
        hdrs.SERVER: f"skyfast/{__version__}",
        hdrs.CACHE_CONTROL: "no-store",
        "X-Content-Type-Options": "nosniff",
        **more,
    }


def text_response(text: str, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(text=text + "\n", status=status, headers=response_headers({}))


def html_response(text: str) -> web.Response:
    headers = response_headers({"Content-Security-Policy": markup.POLICY})
    return web.Response(text=text, content_type="text/html", headers=headers)


def json_response(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers=response_headers({}))


def try_again(reason: str) -> web.Response:
    response = text_response(f"Try again: {reason}.", HTTPStatus.SERVICE_UNAVAILABLE)
    response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
    return response


def header_value(request: web.BaseRequest, name: str) -> str | None:
    """Return the value of a header that may have several lines, or None where it is missing."""
    lines = request.headers.getall(name, None)
    return None if lines is None else ",".join(lines)


def wants_json(request: web.BaseRequest) -> bool:
    """Return whether a page that is for browsers is asked for in JSON."""
    if asked := request.query.get("format"):
        return asked == "json"
    return exposition.prefers(
        header_value(request, hdrs.ACCEPT), ("application/json", ""), default=("text/html", "")
    )


def _scrape_timeout_s(value: str | None, *, default_s: float) -> float:
    """Return the deadline that a scraper asks for, in seconds; nonsense asks for nothing."""
    try:
        timeout_s = float(value or "")
    except ValueError:
        return default_s
    return min(timeout_s, MAX_SCRAPE_TIMEOUT_S) if 0 < timeout_s < math.inf else default_s


async def _listen(address: str, port: int) -> list[socket.socket]:
    """Return sockets bound to ``address``: all addresses of both IP versions, where it is empty.

    A name may have several addresses. All sockets have the same port, where ``port`` is 0 too:
    that is a free one. Raises OSError.
    """
    if address in ("", "::"):
        return [_listen_everywhere(port)]
    found = await asyncio.get_running_loop().getaddrinfo(address, port, type=socket.SOCK_STREAM)
    listeners: list[socket.socket] = []
    absent = None
    for family, _, _, _, where in dict.fromkeys(found):
        try:
            listener = socket.create_server((where[0], port, *where[2:]), family=family)
        except OSError as error:
            if error.errno in _NO_SUCH_ADDRESS:
                absent = error
                continue
            for listener in listeners:
                listener.close()
            raise
        port = listener.getsockname()[1]
        listeners.append(listener)
    if not listeners and absent:
        raise absent
    return listeners


def _listen_everywhere(port: int) -> socket.socket:
    # One socket for both versions, because two would not get the same free port.
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _NO_SUCH_ADDRESS:
                raise
    return socket.create_server(("", port))
