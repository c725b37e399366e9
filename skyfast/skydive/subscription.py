"""Subscribes to one analyzer: connects, authenticates, receives messages and reconnects.

A subscription always ends with an exception. :func:`classify` maps the exception to the reason that
is counted and logged. After the delay that :func:`backoff` determines, the subscription starts
again. This repeats until the subscription is cancelled. A misbehaving analyzer affects only its own
subscription.

``docs/skydive.md`` describes the protocol and the bugs of analyzers.
"""

import asyncio
import contextlib
import errno
import logging
import math
import random
import socket
import ssl as ssl_module
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Never, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
)
from websockets.frames import CloseCode
from websockets.protocol import State

from skyfast import __version__
from skyfast.config.endpoint import Endpoint
from skyfast.config.model import Config
from skyfast.runtime.logs import LOG_INTERVAL_S, LogLimit, printable
from skyfast.skydive.auth import (
    NOT_TLS,
    REDIRECTS,
    USE_PLAIN,
    USE_TLS,
    Authentication,
    Headers,
    connection_error,
    redirect,
    resolve,
)
from skyfast.skydive.silence import Reporting, SilenceDetector, SilenceTiming
from skyfast.skydive.websocket import MessageData, OnMessage, WebSocketConnection
from skyfast.stats import AnalyzerStats, Failure

log = logging.getLogger("skyfast.subscription")

# At level DEBUG, websockets logs all headers, including the credentials.
_wire_log = logging.getLogger("skyfast.websockets")
_wire_log.setLevel(logging.WARNING)

SILENCE_JITTER: Final = 1.3
"""Each subscription multiplies the silence timeout by a random factor from 1 to this value.
Example: a timeout of 20 s becomes 20 to 26 s.

An analyzer stops sending to all its subscribers at once. When one of them reconnects, the analyzer
sends to all of them again. Because of the random factor, one subscriber reconnects first, and the
others do not have to reconnect."""

STATISTICS: Final = ("stats", "stats")
FLOWS: Final = ("flow", "store")
"""Keys in `AnalyzerStats.messages`: the namespace and type of the messages that `SilenceDetector`
counts."""

BACKLOG_BYTES: Final = 32 << 10
"""If a socket has this much unread data at every check, its analyzer has to wait to send.

The receive buffer of a slow reader may be only a little more than half full. Therefore this limit
is less than half of the smallest receive buffer in Linux (``tcp_rmem``). If skyfast reads fast
enough, a socket never has this much unread data between two messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times and intervals of a subscription. Only tests change the defaults."""

    open_timeout_s: float = 10.0
    """Timeout for connecting and the opening handshake together."""
    close_timeout_s: float = 1.0
    """Timeout of the closing handshake. When it expires, the socket is closed."""
    ping_interval_s: float = 10.0
    """Interval of pings, which detect half-open connections."""
    ping_timeout_s: float = 20.0
    """Timeout of a pong. When it expires, the connection is closed."""
    backoff_first_s: float = 0.5
    """Maximum delay before the first reconnection; the maximum doubles with every attempt."""
    backoff_most_s: float = 10.0
    """Upper limit of the maximum delay."""
    healthy_s: float = 30.0
    """After a subscription that lasted this long, the delays start from ``backoff_first_s``
    again."""
    tick_s: float = 1.0
    """Interval of the checks for silence."""
    overload_s: float = 5.0
    """If an analyzer has waited to send for this long, and then closes the connection, skyfast has
    probably read too slowly. Skydive closes a connection if it cannot write for 10 s, or if no pong
    arrives within 7 s."""
    conflict_grace_s: float = 15.0
    """For this time after the end of a subscription, its analyzer may reject the next subscription
    with HTTP 409."""
    log_interval_s: float = LOG_INTERVAL_S
    """Minimum interval between two log lines of the same analyzer and cause."""
    resolve_interval_s: float = 30.0
    """Interval between two resolutions of a ``dns+`` name."""
    silence: SilenceTiming = field(default_factory=SilenceTiming)
    """The times that decide when a subscription is suspect or silent."""


DEFAULT_TIMING: Final = Timing()


class SilenceError(Exception):
    """A subscription has stopped delivering."""


class OverloadError(Exception):
    """The analyzer dropped the subscription because skyfast read too slowly."""


class NamelessServerError(Exception):
    """The server that accepted the subscription did not identify itself as a Skydive service."""


_STATUS_REASONS: Final = {401: "unauthorized", 403: "forbidden", 409: "conflict", 426: "upgrade"}
_CLOSE_REASONS: Final[dict[int, str]] = {
    CloseCode.MESSAGE_TOO_BIG: "too_big",
    CloseCode.INTERNAL_ERROR: "timeout",  # websockets' code for a ping without a pong
}
_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors caused by a shortage of resources on this machine, not by the analyzer."""

REASON_TEXTS: Final = {
    "refused": "cannot connect",
    "unauthorized": "credentials rejected (HTTP 401)",
    "forbidden": "user not allowed to subscribe (HTTP 403)",
    "conflict": "another client is subscribed with the same host_id (HTTP 409)",
    "upgrade": "no subscription endpoint at the path of the URL (HTTP 426)",
    "handshake": "opening handshake failed",
    "closed": "connection closed",
    "timeout": "no response in time",
    "silent": "subscription fell silent",
    "overload": "dropped by the analyzer: skyfast read too slowly",
    "too_big": "message larger than max_message_bytes",
    "unresolved": "cannot resolve the host name",
    "error": "subscription failed",
}
"""The log messages of ``RECONNECT_REASONS``."""


def classify(exc: BaseException) -> str:
    """Return why a subscription or an attempt to connect ended: one of ``RECONNECT_REASONS``."""
    match exc:
        case SilenceError():
            return "silent"
        case OverloadError():
            return "overload"
        case InvalidStatus():
            return _STATUS_REASONS.get(exc.response.status_code, "handshake")
        case InvalidHandshake() | NamelessServerError() | ssl_module.SSLError():
            return "handshake"
        case ConnectionClosed():
            # If the analyzer closed the connection, ``exc.sent`` is None or echoes the close frame
            # of the analyzer.
            if exc.sent is None or exc.rcvd_then_sent:
                return "closed"
            return _CLOSE_REASONS.get(exc.sent.code, "error")
        case socket.gaierror() | UnicodeError():  # UnicodeError: encoding of a host name
            return "unresolved"
        case TimeoutError():
            return "timeout"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return "closed"
        case OSError() if exc.errno not in _SHORTAGES:
            return "refused"
    return "error"


def backoff(timing: Timing = DEFAULT_TIMING) -> Iterator[float]:
    """Yield the delays, in seconds, before new attempts: exponential backoff with full jitter."""
    ceiling_s = timing.backoff_first_s
    while True:
        yield random.uniform(0, ceiling_s)
        ceiling_s = min(2 * ceiling_s, timing.backoff_most_s)


class _Connect(connect):
    """Connects without following redirects: another server would receive the credentials."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _BacklogTimer:
    """Measures how long an analyzer has been waiting to send.

    The backlog is checked once per tick. A late check counts as a backlog, because skyfast read
    nothing while the check was late.
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._checked_s = self._kept_up_s = self._behind_until_s = time.monotonic()
        self._lag_s = 0.0

    def update(self, *, backlog: bool) -> None:
        now_s = time.monotonic()
        if backlog or self._is_long_ago(self._checked_s, now_s):
            self._lag_s = now_s - self._kept_up_s
            self._behind_until_s = now_s
        else:
            self._kept_up_s = now_s
        self._checked_s = now_s

    def seconds(self) -> float:
        """Return how long the analyzer waited; 0 if the wait ended more than two ticks ago."""
        now_s = time.monotonic()
        if self._is_long_ago(self._checked_s, now_s):  # pragma: no cover - only on a slow machine
            return now_s - self._kept_up_s
        # After the connection ended, the remaining backlog was still read. Therefore a wait that
        # ended at most two ticks ago still counts.
        return 0.0 if self._is_long_ago(self._behind_until_s, now_s) else self._lag_s

    def _is_long_ago(self, at_s: float, now_s: float) -> bool:
        return now_s - at_s > 2 * self._tick_s


class _SilenceMonitor:
    """Checks once per tick whether a subscription still delivers. Ends a silent subscription."""

    def __init__(
        self,
        *,
        connection: WebSocketConnection,
        deadline: asyncio.Timeout,
        detector: SilenceDetector,
        stats: AnalyzerStats,
        tick_s: float,
        on_change: Callable[[], None],
    ) -> None:
        """The monitor makes ``deadline`` expire when the subscription is silent.

        ``on_change`` is called when the subscription starts or stops delivering.
        """
        self.received = False
        """Whether a message has arrived since the last tick; `Subscription` sets it to True."""
        self.problem = ""
        """Why the subscription is silent, or an empty string."""
        self.backlog = _BacklogTimer(tick_s)
        self._connection = connection
        self._deadline = deadline
        self._detector = detector
        self._messages = stats.messages
        self._statistics, self._flows = self._counts()
        self._on_change = on_change
        self._tick_s = tick_s
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(tick_s, self._tick)

    def stop(self) -> None:
        self._timer.cancel()
        if self.received and not self._detector.delivered:
            # The first message arrived after the last tick. Report that the subscription delivers.
            # Without this report, the end of the subscription would not pause the expiry of rows
            # (see `ReportingGap`).
            self._detector.delivered = True
            self._on_change()

    def _counts(self) -> tuple[int, int]:
        return self._messages[STATISTICS], self._messages[FLOWS]

    def _tick(self) -> None:
        self.backlog.update(backlog=self._connection.backlog_bytes() >= BACKLOG_BYTES)
        closing = self._connection.state is State.CLOSING
        if closing and self._closing:
            # websockets would wait forever for the server to close the socket.
            self._connection.transport.abort()
            return
        self._closing = closing
        detector = self._detector
        before = detector.delivers
        statistics, flows = self._counts()
        self.problem = detector.update(
            received=self.received,
            statistics=statistics - self._statistics,
            flows=flows > self._flows,
            now_s=self._loop.time(),
        )
        self.received = False
        self._statistics, self._flows = statistics, flows
        if detector.delivers != before:
            self._on_change()
        if self.problem:
            self._deadline.reschedule(self._loop.time())
            return
        self._timer = self._loop.call_later(self._tick_s, self._tick)


class Subscription:
    """A subscription to one analyzer. ``stats.up`` is 1 while the subscription is up."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        config: Config,
        stats: AnalyzerStats,
        reporting: Reporting,
        on_message: OnMessage,
        ssl: ssl_module.SSLContext | None = None,
        on_change: Callable[[], None] | None = None,
        predecessor: "Subscription | None" = None,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        """``ssl`` is required for ``wss://``.

        If ``endpoint`` includes an IP address, skyfast connects to this address. ``on_message``
        receives the bytes of each message, and counts the message in ``stats``. ``on_change`` is
        called when ``stats.up`` or `delivers` has changed. ``predecessor`` is the subscription that
        the new subscription replaces.
        """
        self.endpoint = endpoint
        self._authentication = Authentication(
            endpoint=self.endpoint,
            credentials=config.credentials,
            cookies=config.cookies,
            ssl=ssl,
        )
        self.stats = stats
        self._reporting = reporting
        self._detector: SilenceDetector | None = None
        self._config = config
        self._on_message = on_message
        self._on_change = on_change
        self._ssl = ssl
        self._timing = timing
        self._limit = LogLimit(timing.log_interval_s)
        self._sent_headers: Headers = []
        self._server: str = predecessor._server if predecessor is not None else ""
        self._lasted_s = 0.0
        self._attempts = 0
        """Number of attempts to subscribe since the last successful attempt."""
        self._ended_s: float = predecessor._ended_s if predecessor is not None else -math.inf

    @property
    def delivers(self) -> bool:
        """Whether the subscription is up, has received a message, and is not suspect."""
        return self._detector is not None and self._detector.delivers

    async def run(self) -> None:
        """Stay subscribed until cancelled; then close the subscription cleanly."""
        delays = backoff(self._timing)
        while True:
            try:
                await self._subscribe()
            except Exception as exc:  # noqa: BLE001 - no error may end the process
                if self._lasted_s >= self._timing.healthy_s:
                    delays = backoff(self._timing)
                self._lasted_s = 0.0
                delay_s = next(delays)
                await self._failed(exc, delay_s)
            await asyncio.sleep(delay_s)

    async def _subscribe(self) -> Never:
        self._attempts += 1
        connection = await self._connect()
        try:
            server = _server_name(connection)
            began_s = time.monotonic()
            self._attempts = 0
            self._set_state(1)
            try:
                self._log_subscribed(server)
                await self._receive(connection)
            finally:
                self._set_state(0)
                self._ended_s = time.monotonic()
                self._lasted_s = self._ended_s - began_s
        finally:
            await self._close(connection)

    async def _connect(self) -> WebSocketConnection:
        *others, last = await resolve(self.endpoint.connect_host, self.endpoint.port)
        for address in others:
            with contextlib.suppress(OSError):
                return await self._connect_to(address)
        return await self._connect_to(last)

    async def _connect_to(self, address: str) -> WebSocketConnection:
        endpoint, timing = self.endpoint, self._timing
        capture_id = self._config.subscriber.capture_id
        self._sent_headers = self._authentication.headers()
        connection = await _Connect(
            endpoint.url,
            additional_headers=[
                ("X-Host-ID", self._config.host_id),
                ("X-Client-Type", "analyzer"),
                ("X-Client-Protocol", "json"),
                ("X-Websocket-Namespace", f"flow/{capture_id}" if capture_id else "flow"),
                # Statistics arrive every 10 s even without traffic, so silence can be detected.
                ("X-Websocket-Namespace", "stats"),
                *self._sent_headers,
            ],
            user_agent_header=f"skyfast/{__version__}",
            compression=None,
            proxy=None,
            max_size=self._config.subscriber.max_message_bytes,
            open_timeout=timing.open_timeout_s,
            close_timeout=timing.close_timeout_s,
            ping_interval=timing.ping_interval_s,
            ping_timeout=timing.ping_timeout_s,
            logger=_wire_log,
            host=address,
            port=endpoint.port,
            ssl=self._ssl if endpoint.secure else None,
            create_connection=WebSocketConnection,
        )
        return cast(WebSocketConnection, connection)

    async def _receive(self, connection: WebSocketConnection) -> Never:
        timing = self._timing
        detector = SilenceDetector(
            self._reporting,
            longest_s=self._config.subscriber.silence_timeout_s,
            stretch=random.uniform(1, SILENCE_JITTER),
            tick_s=timing.tick_s,
        )
        self._detector = detector
        self._reporting.detectors.add(detector)
        monitor: _SilenceMonitor | None = None
        try:
            async with asyncio.timeout(None) as deadline:
                monitor = _SilenceMonitor(
                    connection=connection,
                    deadline=deadline,
                    detector=detector,
                    stats=self.stats,
                    tick_s=timing.tick_s,
                    on_change=self._changed,
                )
                try:
                    await self._read(connection, monitor)
                except ConnectionClosed as exc:
                    waited_s = monitor.backlog.seconds()
                    # If there was a close frame, overload was not the cause.
                    if exc.rcvd is None and exc.sent is None and waited_s >= timing.overload_s:
                        text = f"the analyzer waited {waited_s:.0f} s for skyfast to read"
                        raise OverloadError(text) from None
                    raise
                finally:
                    monitor.stop()
        except TimeoutError:
            raise SilenceError(monitor.problem if monitor is not None else "") from None
        finally:
            self._reporting.detectors.discard(detector)
            self._detector = None

    async def _read(self, connection: WebSocketConnection, monitor: _SilenceMonitor) -> Never:
        stats, on_message, now_s = self.stats, self._on_message, time.time

        def handle(data: MessageData) -> None:
            monitor.received = True
            stats.received_bytes += len(data)
            stats.last_message_timestamp_s = now_s()
            try:
                on_message(data)
            except Exception as exc:  # noqa: BLE001 - a bug, but the next message may work
                self._log_bug(exc)

        await connection.receive(
            handle, max_message_bytes=self._config.subscriber.max_message_bytes
        )

    async def _close(self, connection: ClientConnection) -> None:
        try:
            # If the write buffer is full, the timeout of websockets does not apply.
            async with asyncio.timeout(self._timing.close_timeout_s):
                await connection.close()
        except TimeoutError:
            pass
        finally:
            if connection.state is not State.CLOSED:
                connection.transport.abort()

    async def _failed(self, exc: Exception, delay_s: float) -> None:
        """Count and log the end of a subscription. After HTTP 401, log in to the analyzer."""
        reason = classify(exc)
        self.stats.reconnects[reason] += 1
        level = logging.WARNING
        text = REASON_TEXTS[reason]
        if reason not in _STATUS_REASONS.values():
            text += f": {error_details(exc)}{_explanation(exc, secure=self.endpoint.secure)}"
        if reason == "too_big":
            self.stats.errors["too_big"] += 1
        elif reason == "conflict":
            if time.monotonic() - self._ended_s < self._timing.conflict_grace_s:
                level = logging.INFO
                text = "the analyzer has not released the previous subscription yet (HTTP 409)"
        elif reason == "unauthorized":
            if await self._authentication.reauthenticate(self._sent_headers):
                level = logging.INFO
                text += ", but a new login succeeded"
            else:
                text += f", {self._authentication.problem}"
        self.stats.last_failure = Failure(reason, text)
        if self._attempts > 1:
            text = f"still not subscribed after {self._attempts} attempts: {text}"
        self._log(level, reason, f"{text}; next attempt {_when(delay_s)}")

    def _set_state(self, up: int) -> None:
        self.stats.set_up(up)
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def _log_subscribed(self, server: str) -> None:
        # Log the next failure, even if the same failure has just been logged. Otherwise, the last
        # log line would show the subscription as up.
        self._limit.reset()
        if self._server in ("", server):
            log.info("analyzer %s: subscribed to %s", self.endpoint.name, server)
        else:  # another analyzer responds, or the analyzer has a new name
            text = "analyzer %s: subscribed to %s, previously %s"
            log.warning(text, self.endpoint.name, server, self._server)
        self._server = server

    def _log(self, level: int, cause: str, text: str) -> None:
        line = f"analyzer {self.endpoint.name}: {text}"
        self._limit.log(log, level, (cause, level), line)

    def _log_bug(self, exc: Exception) -> None:
        def shown() -> tuple[type[RuntimeError], RuntimeError, TracebackType | None]:
            # Escape the text of the exception, because it may quote the message.
            error = RuntimeError(f"{type(exc).__name__}: {printable(exc)}")
            return RuntimeError, error, exc.__traceback__

        line = f"analyzer {self.endpoint.name}: failed to process a message"
        self._limit.log(log, logging.ERROR, "bug", line, exc_info=shown)


def _server_name(connection: ClientConnection) -> str:
    """Return the server's name from the response headers, as text that is safe to log."""
    names = []
    if connection.response is not None:  # None only before the handshake
        headers = connection.response.headers
        names = [*headers.get_all("X-Service-Type"), *headers.get_all("X-Host-ID")]
    if not any(names):
        raise NamelessServerError("the response has neither X-Host-ID nor X-Service-Type")
    return printable(" ".join(names))


def _when(delay_s: float) -> str:
    return f"in {delay_s:.1f} s" if delay_s >= 0.05 else "now"


def error_details(exc: Exception) -> str:
    """Return the messages of an exception and of its cause, as text that is safe to log."""
    text = connection_error(exc)
    # The exceptions of websockets do not say what went wrong, but their causes do.
    if isinstance(exc, InvalidHandshake | ConnectionClosed) and exc.__cause__ is not None:
        text += f": {connection_error(exc.__cause__)}"
    return text


def _explanation(exc: Exception, *, secure: bool) -> str:
    """Return an explanation of a failed opening handshake, or an empty string."""
    match exc:
        case InvalidStatus() if exc.response.status_code in REDIRECTS:
            return redirect(exc.response.headers.get("Location", ""))
        case InvalidStatus() if exc.response.status_code == 400 and not secure:
            return USE_TLS
        case InvalidMessage() if not secure:  # an HTTP/1.0 response, a TLS alert, or no response
            return USE_TLS
        case ssl_module.SSLError() if exc.reason in NOT_TLS:
            return USE_PLAIN
    return ""
