"""HTTP connections: how skyfast limits and closes them.

At any time, a connection has exactly one deadline: for example, for receiving the request head, for
sending the response, or for waiting until the next request. When the deadline passes, skyfast
closes the connection. aiohttp only parses requests and encodes responses. This module enforces all
limits.

No other module uses undocumented features of aiohttp. This module uses the following features,
which were tested with aiohttp 3.14.5:

* ``web.RequestHandler``: the base class of `HttpConnection`, with the parameters in ``_OPTIONS``
* ``web.RequestHandler.connection_made``, ``web.RequestHandler.connection_lost``,
  ``web.RequestHandler.data_received``, ``web.RequestHandler.eof_received``,
  ``web.RequestHandler.handle_error``: extended or replaced
* ``web.RequestHandler.close``: closes the connection after the response to the current request
* ``web.RequestHandler._force_close``: if true, aiohttp parses no further data, but does not close
  the connection
* ``web.RequestHandler._waiter``: not None while aiohttp waits for a complete head of a request
* ``web.Server``: provides the request handler to connections, with the parameters
  ``request_factory`` and ``handler_cancellation``
* ``web.BaseRequest``: its six positional parameters
* ``http.RawRequestMessage._replace``: changes the version and ``should_close``
* ``http_exceptions.LineTooLong.args``: the second item is the limit that was exceeded
* ``http_exceptions.BadHttpMessage.message``: starts with a fixed text if there are too many headers
"""

import asyncio
import logging
import resource
import socket
import struct
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from skyfast.runtime.logs import LogLimit
from skyfast.stats import ScrapeStats
from skyfast.web.responses import raw_response, text_response

if TYPE_CHECKING:
    from skyfast.web.auth import WebSecurity

HEAD_TIMEOUT_S = 5.0
"""Maximum time from the first to the last byte of a request's head (request line and headers).

This is also the maximum time from the acceptance of a connection, including the TLS handshake, to
the first byte of a request."""

IDLE_TIMEOUT_S = 330.0
"""Timeout of an idle connection.

The timeout is longer than usual scrape intervals. With a scrape interval of 60 s, a timeout of 60 s
would close the connection while the next request is in transit. If ``web.max_connections`` is
reached, idle connections are closed first."""

BODY_TIMEOUT_S = 1.0
"""How long the rest of a request's body is received and discarded after the response.

After this time, the connection is closed."""

MAX_REQUEST_BYTES = 64 * 1024
"""Maximum size of unprocessed data from a client: head, body and pipelined requests.

The limit is checked before each read, so a read can exceed the limit by up to 256 KiB. A request
whose head exceeds the limit gets status 431."""

MAX_LINE_BYTES = 4096
"""Maximum length of a request line. A request with a longer line gets status 414."""

MAX_FIELD_BYTES = 8190
"""Maximum length of a header. A request with a longer header gets status 431."""

MAX_HEADERS = 128
"""Maximum number of headers of a request. A request with more headers gets status 431."""

DISCARD_TIMEOUT_S = 1.0
"""How long data is received and discarded after the response to an invalid request.

Closing a socket with unread data would reset the connection, and the client would not receive the
response."""

MAX_DISCARDED_BYTES = 1024 * 1024
"""Maximum size of the data that is discarded after an invalid request."""

WRITE_BUFFER_BYTES = 64 * 1024
"""Writing a page pauses when the write buffer exceeds this size."""

TLS_CLOSE_TIMEOUT_S = 0.5
"""How long to wait for the client's TLS close_notify before the connection is aborted."""

FEW_DESCRIPTORS = 8
"""A warning is logged if at most this many file descriptors are free.

If no descriptor is free, the event loop closes new connections without an error."""

PLAIN_HTTP = "plain HTTP request on an HTTPS port"
"""The reason in the response to a client that does not use TLS."""

_OPTIONS: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,  # bodies are discarded
    "keepalive_timeout": 24 * 3600,  # never reached: IDLE_TIMEOUT_S is shorter
    "lingering_time": BODY_TIMEOUT_S,
    "max_field_size": MAX_FIELD_BYTES,
    "max_headers": MAX_HEADERS,
    "max_line_size": MAX_LINE_BYTES,
}

# Closing a socket with a linger time of zero resets the connection. The reset shows the client that
# the page is truncated. With HTTP/1.0, a normal end of the connection would mean that the page is
# complete.
_LINGER_ZERO = struct.pack("ii", 1, 0)

log = logging.getLogger("skyfast.web")


class HttpConnections:
    """The open connections, at most ``limit``."""

    def __init__(self, *, limit: int, stats: ScrapeStats) -> None:
        self.limit = limit
        self._stats = stats
        self._open: set[HttpConnection] = set()
        self._idle: dict[HttpConnection, None] = {}  # the longest idle connection is first
        self._closed = False
        self._log_limit = LogLimit()

    def add(self, connection: "HttpConnection") -> None:
        """Add ``connection``.

        If ``limit`` connections are open, first close the connection that has been idle longest. If
        no connection is idle, close ``connection`` instead of adding it.
        """
        if self._closed:  # pragma: no cover - accepted during a stop
            connection.reset()
            return
        if len(self._open) >= self.limit:
            victim = next(iter(self._idle), connection)
            self._stats.connections_rejected += 1
            self._log_limit.warn(
                log,
                "full",
                f"HTTP connection from {victim.address} closed:"
                f" {self.limit} connections are open, which is the maximum (web.max_connections)",
            )
            self.remove(victim)
            victim.close_or_reset()
            if victim is connection:
                return
        self._open.add(connection)
        self._idle[connection] = None

    def check_descriptors(self, latest: int) -> None:
        """Warn if few file descriptors are free.

        ``latest`` is the newest descriptor. Because the system always assigns the lowest free
        descriptor, all descriptors below ``latest`` are in use.
        """
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = limit - 1 - latest
        if free <= FEW_DESCRIPTORS and limit != resource.RLIM_INFINITY:
            self._log_limit.warn(
                log,
                "descriptors",
                f"file descriptors are running out: at most {max(free, 0)} of {limit} (LimitNOFILE)"
                " are free; when none is left, connections are closed without a response",
            )

    def handshake_failed(self, connection: "HttpConnection", reason: str, text: str) -> None:
        self._stats.handshakes_failed[reason] += 1
        # Disconnects are normal: certificate monitoring and port scans cause them.
        level = logging.INFO if reason == "disconnected" else logging.WARNING
        line = f"TLS handshake failed for {connection.address}: {text}"
        self._log_limit.log(log, level, ("handshake", reason), line)

    def remove(self, connection: "HttpConnection") -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def begin_response(self, connection: "HttpConnection") -> None:
        self._idle.pop(connection, None)

    def end_response(self, connection: "HttpConnection") -> None:
        if connection in self._open:
            self._idle[connection] = None

    async def close(self) -> None:
        """Close all connections and reject new connections. Wait until all are closed."""
        self._closed = True
        connections = list(self._open)
        for connection in connections:
            connection.close_or_reset()
        if connections:
            await asyncio.wait([connection.lost for connection in connections])


class HttpConnection(web.RequestHandler):
    def __init__(
        self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, connections: HttpConnections
    ) -> None:
        super().__init__(manager, loop=loop, **_OPTIONS)
        self.address = ""
        self.timed_out = False
        """Whether the deadline has passed during a response."""
        self.lost: asyncio.Future[None] = loop.create_future()
        self._connections = connections
        self._stream: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._security: WebSecurity | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._responding = False
        self._unprocessed_bytes = 0
        self._discarded_bytes = -1  # -1 while received data is not discarded
        self._reset = False
        self._deadline_passed = False
        self.is_forbidden = False
        """Whether the client's certificate has none of the allowed SANs."""

    def start_tls(self, client: socket.socket, security: "WebSecurity") -> None:
        """Start the TLS handshake.

        The handshake and the first byte of the first request share one deadline.
        """
        self._security = security
        self._register(_peer(client))
        if self._reset:  # pragma: no cover - closed within microseconds
            self._handshake_done(client)
            return
        self._handshake = asyncio.create_task(self._do_handshake(client, security))
        self._handshake.add_done_callback(lambda _: self._handshake_done(client))

    async def _do_handshake(self, client: socket.socket, security: "WebSecurity") -> None:
        from skyfast.web.handshakes import Handshake

        context = (await security.refresh()).tls
        handshake = Handshake(client)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, client, ssl=context, ssl_shutdown_timeout=IDLE_TIMEOUT_S
            )
        except OSError as error:  # `ssl.SSLError` is a subclass
            reason, text = handshake.failure(error)
            if reason:
                self._connections.handshake_failed(self, reason, text)
            if reason == "plain_http":
                await handshake.respond(raw_response(HTTPStatus.BAD_REQUEST, PLAIN_HTTP))
            else:
                await handshake.respond(handshake.alert)
        except asyncio.CancelledError:
            if self._deadline_passed and handshake.first:
                text = f"timed out after {HEAD_TIMEOUT_S:g} s"
                self._connections.handshake_failed(self, "timeout", text)
            raise
        finally:
            handshake.close()

    def _handshake_done(self, client: socket.socket) -> None:
        if self._stream is None:
            client.close()
            self._unregister()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._stream = cast(asyncio.Transport, transport)  # aiohttp drops its reference too early
        self._stream.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if self._security is None:
            self._connections.check_descriptors(transport.get_extra_info("socket").fileno())
            self._register(transport.get_extra_info("peername"))
        elif not self._security.allows_certificate(transport.get_extra_info("peercert")):
            # The handshake is complete, so it is too late for a TLS alert: requests get status 403.
            self.is_forbidden = True
            text = "client certificate matches none of client_allowed_sans"
            self._connections.handshake_failed(self, "client_certificate", text)

    def _register(self, peer: Any) -> None:
        # `peer` is None if the client has already reset the connection. A dual-stack socket shows
        # IPv4 addresses as IPv6 addresses with the prefix ::ffff:.
        self.address = peer[0].removeprefix("::ffff:") if peer else ""
        self._set_deadline(HEAD_TIMEOUT_S)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._reset:
            return
        if self._discarded_bytes >= 0:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.reset()
            return
        if self._unprocessed_bytes > MAX_REQUEST_BYTES:
            if self._waiter is not None:  # aiohttp waits for the end of a head
                text = f"request head longer than {MAX_REQUEST_BYTES} bytes"
                self._send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
            else:
                self.reset()
            return
        if data and not self._unprocessed_bytes and not self._responding:
            self._set_deadline(HEAD_TIMEOUT_S)
        self._unprocessed_bytes += len(data)
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's method returns None
        """Return whether to keep the connection open for a response after the client has sent EOF.

        Without this method, aiohttp would close the connection at once, even in the middle of a
        page.
        """
        if self._discarded_bytes >= 0:
            return False
        has_request = self._responding or self._unprocessed_bytes > 0
        if has_request:
            self.close()  # closes the connection after the response
        # Neither asyncio nor uvloop supports half-closed TLS connections.
        return has_request and self._security is None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._unregister()
        super().connection_lost(exc)

    def _unregister(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._connections.remove(self)
        if not self.lost.done():
            self.lost.set_result(None)

    def begin_response(self, timeout_s: float) -> None:
        """Start a response, or change its timeout."""
        self._responding = True
        self._unprocessed_bytes = 0
        self._connections.begin_response(self)
        self._set_deadline(timeout_s)

    def end_response(self) -> None:
        self._responding = False
        self._connections.end_response(self)
        self._set_deadline(HEAD_TIMEOUT_S if self._unprocessed_bytes else IDLE_TIMEOUT_S)

    def close_or_reset(self) -> None:
        """Close the connection, or reset it if a response is in progress."""
        if self._stream is None:
            self._abort_handshake()
        elif self._responding or self._stream.get_write_buffer_size():
            self.reset()
        else:
            self._stream.close()
            if self._security is not None:
                # close() waits for the client's close_notify.
                self._call_later(TLS_CLOSE_TIMEOUT_S, self._stream.abort)

    def reset(self) -> None:
        self._reset = True
        if self.lost.done():
            return  # a new connection may already use the descriptor
        if self._stream is None:  # pragma: no cover - during a handshake
            self._abort_handshake()
            return
        client = self._stream.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._stream.abort()

    def _abort_handshake(self) -> None:
        """Cancel the handshake, or prevent it from starting."""
        self._reset = True
        if self._handshake is not None:
            self._handshake.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to malformed requests and to exceptions of the handler.

        This method replaces a method of aiohttp that logs a traceback for every malformed request.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            log.debug("bad request from %s: %s", self.address, message)
            self._send_error(*_parse_error_response(exc))
            raise ConnectionResetError("no further requests are read")
        log.error("%s %s failed", request.method, request.path, exc_info=exc)
        if self._reset:
            raise ConnectionResetError("the connection was reset")
        response = text_response(HTTPStatus(status).phrase + ".", status)
        response.force_close()
        return response

    def _send_error(self, status: HTTPStatus, reason: str) -> None:
        """Respond to an invalid request, and close the connection after `DISCARD_TIMEOUT_S`."""
        if self._reset or self._stream is None or self.lost.done():
            return
        # aiohttp stops parsing, and leaves it to this class to close the connection.
        self._force_close = True
        self._discarded_bytes = 0
        self._stream.write(raw_response(status, reason))
        if self._stream.can_write_eof():
            self._stream.write_eof()
        self._set_deadline(DISCARD_TIMEOUT_S)

    def _set_deadline(self, timeout_s: float) -> None:
        self._call_later(timeout_s, self._on_deadline)

    def _call_later(self, delay_s: float, action: Callable[[], None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.lost.done():
            self._deadline = asyncio.get_running_loop().call_later(delay_s, action)

    def _on_deadline(self) -> None:
        self.timed_out = self._responding
        self._deadline_passed = True
        self.close_or_reset()


def connection_of(request: web.BaseRequest) -> HttpConnection:
    return cast(HttpConnection, request.protocol)


def _parse_error_response(error: BaseException | None) -> tuple[HTTPStatus, str]:
    if isinstance(error, LineTooLong):
        if str(error.args[1]) == str(MAX_LINE_BYTES):
            return (
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"request line longer than {MAX_LINE_BYTES} bytes",
            )
        return (
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"header longer than {MAX_FIELD_BYTES} bytes",
        )
    if isinstance(error, BadHttpMessage) and error.message.startswith("Too many headers"):
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEADERS} headers"
    return HTTPStatus.BAD_REQUEST, ""


def make_manager(handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> web.Server:
    """Return the aiohttp server that all connections share.

    Requires a running event loop.
    """
    return web.Server(handle, request_factory=_make_request, handler_cancellation=True)


def _make_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """Create a request from the message that aiohttp has parsed, with three changes.

    * Versions other than HTTP/1.0 and HTTP/1.1 are replaced with HTTP/1.0. Otherwise, aiohttp would
      respond with the version of the request, such as HTTP/2.0.
    * If the version is HTTP/1.0, the connection is closed after the response, because the end of
      the connection marks the end of a page.
    * If the request has the header ``Upgrade``, the connection is closed after the response.
      Otherwise, aiohttp would parse further data as another protocol.
    """
    if message.version not in {HttpVersion10, HttpVersion11}:
        message = message._replace(version=HttpVersion10)
    if message.version < HttpVersion11 or hdrs.UPGRADE in message.headers:
        message = message._replace(should_close=True)
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


def _peer(client: socket.socket) -> Any:
    try:
        return client.getpeername()
    except OSError:  # pragma: no cover - already reset
        return None
