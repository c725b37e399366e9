"""One analyzer's subscription: connects, authenticates, receives and reconnects.

A message is handed on as the bytes that came: what is in it is no concern of this module.

A subscription ends with an exception, always. :func:`classify` turns it into the reason
that is counted and logged, :func:`backoff` says how long to wait, and it begins again. Nothing
short of cancellation ends that, so whatever an analyzer does costs no more than its own
subscription.

What the analyzers expect, and what they do wrong, is in ``docs/skydive.md``.
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
    redirect,
    resolve,
)
from skyfast.skydive.silence import Reporting, Silence, SilenceTiming
from skyfast.skydive.websocket import Connection, MessageData, OnMessage
from skyfast.stats import AnalyzerStats, Failure

log = logging.getLogger("skyfast.subscription")

# At level DEBUG, websockets logs all headers, with the credentials.
_wire_log = logging.getLogger("skyfast.websockets")
_wire_log.setLevel(logging.WARNING)

SILENCE_JITTER: Final = 1.3
"""The silence time-out is stretched by up to this factor, anew for each subscription.

Analyzers fall silent for all their subscribers together, and the first that reconnects wakes them
for the others: so those should not all reconnect at once. 20 s become 26 s at most, and the 45 s
of ``silence_timeout`` 58 s."""

STATISTICS: Final = ("stats", "stats")
FLOWS: Final = ("flow", "store")
"""What `AnalyzerStats.messages` counts the messages by that silence is told from."""

BACKLOG_BYTES: Final = 32 << 10
"""A socket with so much unread keeps its analyzer waiting, if it does so all the time.

Less than half of the smallest receive buffer that Linux gives (``tcp_rmem``), which cannot hold
much more of a slow reader's than its half; and more than what lies there between two messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All times, in seconds. Only tests use others than these."""

    open_timeout_s: float = 10.0
    """From the beginning of a connection to the end of its opening handshake."""
    close_timeout_s: float = 1.0
    """For the closing handshake; then the socket is closed without it."""
    ping_interval_s: float = 10.0
    """Between our own pings, which find half-open connections..."""
    ping_timeout_s: float = 20.0
    """... where they are not answered in this time."""
    backoff_first_s: float = 0.5
    """The longest wait before the first new attempt; it doubles with every further one..."""
    backoff_most_s: float = 10.0
    """... up to this."""
    healthy_s: float = 30.0
    """A subscription that lasted as long starts the waits over."""
    tick_s: float = 1.0
    """How often silence is looked for."""
    overload_s: float = 5.0
    """An analyzer that was kept waiting for so long has closed the connection because of that.
    Skydive does after 10 s in which it could not write, and 7 s in which it had no pong."""
    conflict_grace_s: float = 15.0
    """How long an analyzer may take our own last subscription for another client's."""
    log_interval_s: float = LOG_INTERVAL_S
    """Between two log lines about one analyzer and cause."""
    resolve_interval_s: float = 30.0
    """Between two resolutions of a ``dns+`` name."""
    silence: SilenceTiming = field(default_factory=SilenceTiming)
    """Those of `skyfast.skydive.silence`."""


DEFAULT_TIMING: Final = Timing()


class SilenceError(Exception):
    """A subscription that had delivered stopped delivering."""


class OverloadError(Exception):
    """The analyzer gave up a subscription that was not read from fast enough."""


class NamelessServerError(Exception):
    """Whoever accepted the subscription did not say that it is a Skydive service."""


_STATUS_REASONS: Final = {401: "unauthorized", 403: "forbidden", 409: "conflict", 426: "upgrade"}
_CLOSE_REASONS: Final[dict[int, str]] = {
    CloseCode.MESSAGE_TOO_BIG: "too_big",
    CloseCode.INTERNAL_ERROR: "timeout",  # websockets' code for a ping without a pong
}
_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What the system says when it is our own machine that has not enough: nobody refused anything."""

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
"""What is logged for each of ``RECONNECT_REASONS``."""


def classify(exc: BaseException) -> str:
    """Return why a subscription, or the attempt at one, ended: one of ``RECONNECT_REASONS``."""
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
            if exc.sent is None or exc.rcvd_then_sent:
                return "closed"  # by the other side, whose code is echoed
            return _CLOSE_REASONS.get(exc.sent.code, "error")
        case socket.gaierror() | UnicodeError():  # the latter from the encoding of host names
            return "unresolved"
        case TimeoutError():
            return "timeout"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return "closed"
        case OSError() if exc.errno not in _SHORTAGES:
            return "refused"
    return "error"


def backoff(timing: Timing = DEFAULT_TIMING) -> Iterator[float]:
    """Yield how many seconds to wait before each new attempt: full jitter, growing ceiling."""
    ceiling_s = timing.backoff_first_s
    while True:
        yield random.uniform(0, ceiling_s)
        ceiling_s = min(2 * ceiling_s, timing.backoff_most_s)


class _Connect(connect):
    """Does not follow redirects: no analyzer has any, and they would take our headers along."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _BacklogTimer:
    """For how long an analyzer is kept waiting, by a look at the backlog once a tick.

    A look that comes late tells of a time in which nothing was read at all.
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._looked_s = self._kept_up_s = self._behind_until_s = time.monotonic()
        self._lag_s = 0.0

    def look(self, *, backlog: bool) -> None:
        now_s = time.monotonic()
        if backlog or self._is_long_ago(self._looked_s, now_s):
            self._lag_s = now_s - self._kept_up_s
            self._behind_until_s = now_s
        else:
            self._kept_up_s = now_s
        self._looked_s = now_s

    def seconds(self) -> float:
        """Return how long it has been, up to now or just before."""
        now_s = time.monotonic()
        if self._is_long_ago(self._looked_s, now_s):  # pragma: no cover - only on a slow machine
            return now_s - self._kept_up_s
        # Before the end of a connection comes what was left of the backlog.
        return 0.0 if self._is_long_ago(self._behind_until_s, now_s) else self._lag_s

    def _is_long_ago(self, at_s: float, now_s: float) -> bool:
        return now_s - at_s > 2 * self._tick_s


class _SilenceMonitor:
    """Looks once a tick whether a subscription still delivers, and ends it where not.

    Silence is counted in ticks, not read from a clock: when the process was stopped for a
    while, the late tick counts as one, and what has come in is read before the next.

    In ``lag`` it keeps for how long the analyzer has been waiting for us.
    """

    def __init__(
        self,
        *,
        connection: Connection,
        deadline: asyncio.Timeout,
        silence: Silence,
        stats: AnalyzerStats,
        tick_s: float,
        on_change: Callable[[], None],
    ) -> None:
        """Begin to monitor. ``deadline`` expires with silence.

        ``on_change`` is called when it begins or ceases to deliver.
        """
        self.heard = False
        """To be set with every message."""
        self.problem = ""
        """Why the subscription is silent, when it is."""
        self.backlog = _BacklogTimer(tick_s)
        self._connection = connection
        self._deadline = deadline
        self._silence = silence
        self._messages = stats.messages
        self._statistics, self._flows = self._counts()
        self._on_change = on_change
        self._tick_s = tick_s
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(tick_s, self._tick)

    def stop(self) -> None:
        self._timer.cancel()
        if self.heard and not self._silence.delivered:
            # It has ended before the first look, and what it delivered will be missing.
            self._silence.delivered = True
            self._on_change()

    def _counts(self) -> tuple[int, int]:
        """Return the messages so far with statistics and with flows."""
        return self._messages[STATISTICS], self._messages[FLOWS]

    def _tick(self) -> None:
        self.backlog.look(backlog=self._connection.backlog_bytes() >= BACKLOG_BYTES)
        closing = self._connection.state is State.CLOSING
        if closing and self._closing:
            # websockets waits for the server to close the socket, be it for ever.
            self._connection.transport.abort()
            return
        self._closing = closing
        silence = self._silence
        before = silence.delivers
        statistics, flows = self._counts()
        self.problem = silence.look(
            heard=self.heard,
            statistics=statistics - self._statistics,
            flows=flows > self._flows,
            now_s=self._loop.time(),
        )
        self.heard = False
        self._statistics, self._flows = statistics, flows
        if silence.delivers != before:
            self._on_change()
        if self.problem:
            self._deadline.reschedule(self._loop.time())
            return
        self._timer = self._loop.call_later(self._tick_s, self._tick)


class Subscription:
    """One analyzer's subscription. ``up`` in its stats is 1 while it is subscribed."""

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
        """Prepare to subscribe to ``endpoint``, one of ``config.subscriber.endpoints``.

        It may have one of its addresses. ``ssl`` is needed for ``wss://``. ``on_message`` gets
        the bytes of each message, and counts it in ``stats``; ``on_change`` is called when
        ``stats.up`` or `delivers` has changed. ``predecessor`` is the same analyzer's
        subscription that has been ended for this one.
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
        self._silence: Silence | None = None
        self._config = config
        self._on_message = on_message
        self._on_change = on_change
        self._ssl = ssl
        self._timing = timing
        self._limit = LogLimit(timing.log_interval_s)
        self._offered: Headers = []
        self._server: str = predecessor._server if predecessor is not None else ""
        self._lasted_s = 0.0
        self._ended_s: float = predecessor._ended_s if predecessor is not None else -math.inf

    @property
    def delivers(self) -> bool:
        """Whether it is subscribed, has brought a message since then, and is not suspect."""
        return self._silence is not None and self._silence.delivers

    async def run(self) -> None:
        """Stay subscribed until cancelled; then the subscription is closed properly."""
        delays = backoff(self._timing)
        while True:
            try:
                await self._subscribe()
            except Exception as exc:  # noqa: BLE001 - whatever it is, it must not end the process
                if self._lasted_s >= self._timing.healthy_s:
                    delays = backoff(self._timing)
                self._lasted_s = 0.0
                delay_s = next(delays)
                await self._failed(exc, delay_s)
            await asyncio.sleep(delay_s)

    async def _subscribe(self) -> Never:
        """Subscribe, and receive until something fails."""
        connection = await self._connect()
        try:
            server = _server_name(connection)
            began_s = time.monotonic()
            self._set_up(1)
            try:
                self._log_subscribed(server)
                await self._receive(connection)
            finally:
                self._set_up(0)
                self._ended_s = time.monotonic()
                self._lasted_s = self._ended_s - began_s
        finally:
            await self._close(connection)

    async def _connect(self) -> Connection:
        """Connect to the first address that can be connected to."""
        *others, last = await resolve(self.endpoint.connect_host, self.endpoint.port)
        for address in others:
            with contextlib.suppress(OSError):
                return await self._connect_to(address)
        return await self._connect_to(last)

    async def _connect_to(self, address: str) -> Connection:
        endpoint, timing = self.endpoint, self._timing
        capture_id = self._config.subscriber.capture_id
        self._offered = self._authentication.headers()
        connection = await _Connect(
            endpoint.url,
            additional_headers=[
                ("X-Host-ID", self._config.host_id),
                ("X-Client-Type", "analyzer"),
                ("X-Client-Protocol", "json"),
                ("X-Websocket-Namespace", f"flow/{capture_id}" if capture_id else "flow"),
                # Comes every 10 s, traffic or not: without it, silence would mean nothing.
                ("X-Websocket-Namespace", "stats"),
                *self._offered,
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
            create_connection=Connection,
        )
        return cast(Connection, connection)

    async def _receive(self, connection: Connection) -> Never:
        timing = self._timing
        silence = Silence(
            self._reporting,
            longest_s=self._config.subscriber.silence_timeout_s,
            stretch=random.uniform(1, SILENCE_JITTER),
            tick_s=timing.tick_s,
        )
        self._silence = silence
        self._reporting.silences.add(silence)
        monitor: _SilenceMonitor | None = None
        try:
            async with asyncio.timeout(None) as deadline:
                monitor = _SilenceMonitor(
                    connection=connection,
                    deadline=deadline,
                    silence=silence,
                    stats=self.stats,
                    tick_s=timing.tick_s,
                    on_change=self._changed,
                )
                try:
                    await self._read(connection, monitor)
                except ConnectionClosed as exc:
                    waited_s = monitor.backlog.seconds()
                    # With a code, it would be for another reason.
                    if exc.rcvd is None and exc.sent is None and waited_s >= timing.overload_s:
                        text = f"the analyzer waited {waited_s:.0f} s"
                        raise OverloadError(text) from None
                    raise
                finally:
                    monitor.stop()
        except TimeoutError:
            raise SilenceError(monitor.problem if monitor is not None else "") from None
        finally:
            self._reporting.silences.discard(silence)
            self._silence = None

    async def _read(self, connection: Connection, monitor: _SilenceMonitor) -> Never:
        """Hand on message after message."""
        stats, on_message, now_s = self.stats, self._on_message, time.time

        def handle(data: MessageData) -> None:
            monitor.heard = True
            stats.received_bytes += len(data)
            stats.last_message_timestamp_s = now_s()
            try:
                on_message(data)
            except Exception as exc:  # noqa: BLE001 - a bug, but the next message may be well
                self._log_bug(exc)

        await connection.receive(
            handle, max_message_bytes=self._config.subscriber.max_message_bytes
        )

    async def _close(self, connection: ClientConnection) -> None:
        try:
            # websockets' own time-out does not cover a full write buffer.
            async with asyncio.timeout(self._timing.close_timeout_s):
                await connection.close()
        except TimeoutError:
            pass
        finally:
            if connection.state is not State.CLOSED:
                connection.transport.abort()

    async def _failed(self, exc: Exception, delay_s: float) -> None:
        """Count and log the end of a subscription, and log in where that may help."""
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
            if await self._authentication.reauthenticate(self._offered):
                level = logging.INFO
                text += ", logged in"
            else:
                text += f", {self._authentication.problem}"
        self.stats.last_failure = Failure(reason, text)
        self._log(level, reason, f"{text}; next attempt in {delay_s:.1f} s")

    def _set_up(self, up: int) -> None:
        self.stats.turn(up)
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def _log_subscribed(self, server: str) -> None:
        # The last line about an analyzer tells its present state: so does the next failure's.
        self._limit.reset()
        if self._server in ("", server):
            log.info("analyzer %s: subscribed to %s", self.endpoint.name, server)
        else:  # another analyzer, or one that is configured anew
            text = "analyzer %s: subscribed to %s, previously %s"
            log.warning(text, self.endpoint.name, server, self._server)
        self._server = server

    def _log(self, level: int, cause: str, text: str) -> None:
        line = f"analyzer {self.endpoint.name}: {text}"
        self._limit.log(log, level, (cause, level), line)

    def _log_bug(self, exc: Exception) -> None:
        def shown() -> tuple[type[RuntimeError], RuntimeError, TracebackType | None]:
            # The exception's own text may quote the message: only its traceback is logged as it is.
            error = RuntimeError(f"{type(exc).__name__}: {printable(exc)}")
            return RuntimeError, error, exc.__traceback__

        line = f"analyzer {self.endpoint.name}: failed to process a message"
        self._limit.log(log, logging.ERROR, "bug", line, exc_info=shown)


def _server_name(connection: ClientConnection) -> str:
    """Return how the server calls itself, fit for a log, once it has said so."""
    names = []
    if connection.response is not None:  # as it is before the handshake only
        headers = connection.response.headers
        names = [*headers.get_all("X-Service-Type"), *headers.get_all("X-Host-ID")]
    if not any(names):
        raise NamelessServerError("the response has neither X-Host-ID nor X-Service-Type")
    return printable(" ".join(names))


def error_details(exc: Exception) -> str:
    """Return what happened, fit for a log."""
    text = str(exc) or type(exc).__name__
    # What websockets raises is general; what made it do so is not.
    if isinstance(exc, InvalidHandshake | ConnectionClosed) and exc.__cause__ is not None:
        text += f": {exc.__cause__}"
    return printable(text)


def _explanation(exc: Exception, *, secure: bool) -> str:
    """Return what to add to the details of a failed opening handshake, if anything."""
    match exc:
        case InvalidStatus() if exc.response.status_code in REDIRECTS:
            return redirect(exc.response.headers.get("Location", ""))
        case InvalidStatus() if exc.response.status_code == 400 and not secure:
            return USE_TLS
        case InvalidMessage() if not secure:  # an HTTP/1.0 answer, an alert, or none at all
            return USE_TLS
        case ssl_module.SSLError() if exc.reason in NOT_TLS:
            return USE_PLAIN
    return ""
