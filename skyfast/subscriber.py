"""The subscriptions: connect to the analyzers, authenticate, keep alive, reconnect for ever.

:class:`Subscription` is one analyzer's, :class:`Subscriptions` all of them. A message is handed
on as the bytes that came: what is in it is no concern of this module.

A subscription ends with an exception, always. :func:`classify` turns it into the reason
that is counted and logged, :func:`backoff` says how long to wait, and it begins again. Nothing
short of cancellation ends that, so whatever an analyzer does costs no more than its own
subscription.

What the analyzers expect, and what they do wrong, is in ``docs/skydive.md``.
"""

import asyncio
import contextlib
import logging
import math
import random
import socket
import ssl as ssl_module
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Never, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode
from websockets.protocol import State

from skyfast import __version__
from skyfast.config import Config, ConfigError
from skyfast.frames import Connection, MessageData, OnMessage
from skyfast.login import (
    Authentication,
    Endpoint,
    Headers,
    host_and_port,
    resolve,
)
from skyfast.logs import LogLimit, printable
from skyfast.selfmetrics import AnalyzerStats, Stats
from skyfast.tls import client_context

log = logging.getLogger(__name__)

# At level DEBUG, websockets logs all headers, with the credentials.
_wire_log = logging.getLogger("skyfast.websockets")
_wire_log.setLevel(logging.WARNING)

MAX_ADDRESSES: Final = 64
"""Addresses of one ``dns+`` name that are subscribed to."""

SILENCE_JITTER: Final = 1.3
"""The silence time-out is stretched by up to this factor, anew for each subscription.

Analyzers fall silent for all their subscribers together, and the first that reconnects wakes them
for the others: so those should not all reconnect at once. 45 s become 58 s at most, which is
still well before the connections of a silent analyzer leave, after 75 s."""


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
    conflict_grace_s: float = 15.0
    """How long an analyzer may take our own last subscription for another client's."""
    log_interval_s: float = 60.0
    """Between two log lines about one analyzer and cause."""
    resolve_interval_s: float = 30.0
    """Between two resolutions of a ``dns+`` name."""


DEFAULT_TIMING: Final = Timing()

Resolve = Callable[[str, int], Awaitable[list[str]]]


class SilenceError(Exception):
    """A subscription that had delivered stopped delivering."""


class NamelessServerError(Exception):
    """Whoever accepted the subscription did not say that it is a Skydive service."""


_STATUS_REASONS: Final = {401: "unauthorized", 403: "forbidden", 409: "conflict", 426: "upgrade"}
_CLOSE_REASONS: Final[dict[int, str]] = {
    CloseCode.MESSAGE_TOO_BIG: "too_big",
    CloseCode.INTERNAL_ERROR: "timeout",  # websockets' code for a ping without a pong
}
_TEXTS: Final = {
    "refused": "cannot connect",
    "unauthorized": "the credentials were refused (HTTP 401)",
    "forbidden": "the user may not subscribe (HTTP 403)",
    "conflict": "another client is subscribed with our host_id (HTTP 409)",
    "upgrade": "the URL's path serves no subscription (HTTP 426)",
    "handshake": "the opening handshake failed",
    "closed": "the connection was closed",
    "timeout": "no answer in time",
    "silent": "the subscription fell silent",
    "too_big": "a message was larger than max_message_bytes",
    "unresolved": "the name cannot be resolved",
    "error": "the subscription failed",
}


def classify(exc: BaseException) -> str:
    """Return why a subscription, or the attempt at one, ended: one of ``RECONNECT_REASONS``."""
    match exc:
        case SilenceError():
            return "silent"
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
        case OSError():
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


class _Watch:
    """Looks once a tick whether a subscription still delivers, and ends it where not.

    Silence is counted in ticks, not read from a clock: when the process was stopped for a
    while, the late tick counts as one, and what has come in is read before the next.
    """

    def __init__(
        self,
        *,
        connection: ClientConnection,
        deadline: asyncio.Timeout,
        timeout_s: float,
        tick_s: float,
    ) -> None:
        """Begin to watch. ``deadline`` expires after ``timeout_s`` of silence; 0 is never."""
        self.heard = False
        """To be set with every message."""
        self._connection = connection
        self._deadline = deadline
        self._timeout_s = timeout_s or math.inf
        self._tick_s = tick_s
        self._delivered = False
        self._closing = False
        self._silent_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(tick_s, self._tick)

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        closing = self._connection.state is State.CLOSING
        if closing and self._closing:
            # websockets waits for the server to close the socket, be it for ever.
            self._connection.transport.abort()
            return
        self._closing = closing
        if self.heard:
            self.heard = False
            self._delivered = True
            self._silent_s = 0.0
        elif self._delivered:
            self._silent_s += self._tick_s
            if self._silent_s >= self._timeout_s:
                self._deadline.reschedule(self._loop.time())
                return
        self._timer = self._loop.call_later(self._tick_s, self._tick)


class Subscription:
    """One analyzer's subscription. ``up`` in its stats is 1 while it is subscribed."""

    def __init__(
        self,
        *,
        url: str,
        config: Config,
        stats: AnalyzerStats,
        on_message: OnMessage,
        address: str = "",
        ssl: ssl_module.SSLContext | None = None,
        on_change: Callable[[], None] | None = None,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        """Prepare to subscribe to ``url``, one of ``config.subscriber.endpoints``.

        ``address`` is what to connect to in place of the URL's host. ``ssl`` is needed
        for ``wss://``. ``on_message`` gets the bytes of each message, ``on_change`` is called
        when ``stats.up`` has changed.
        """
        self.endpoint = Endpoint.parse(url, address=address)
        self._authentication = Authentication(
            endpoint=self.endpoint,
            credentials=config.credentials,
            cookies=config.cookies,
            ssl=ssl,
        )
        self.stats = stats
        self._config = config
        self._on_message = on_message
        self._on_change = on_change
        self._ssl = ssl
        self._timing = timing
        self._limit = LogLimit(timing.log_interval_s)
        self._offered: Headers = []
        self._lasted_s = 0.0
        self._ended_s = -math.inf

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
                self._log(logging.INFO, "subscribed", f"subscribed to {server}")
                await self._receive(connection)
            finally:
                self._set_up(0)
                self._ended_s = time.monotonic()
                self._lasted_s = self._ended_s - began_s
        finally:
            await self._close(connection)

    async def _connect(self) -> Connection:
        """Connect to the first address that can be connected to."""
        *others, last = await resolve(self.endpoint.address, self.endpoint.port)
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
        timeout_s = self._config.subscriber.silence_timeout_s * random.uniform(1, SILENCE_JITTER)
        try:
            async with asyncio.timeout(None) as deadline:
                watch = _Watch(
                    connection=connection,
                    deadline=deadline,
                    timeout_s=timeout_s,
                    tick_s=self._timing.tick_s,
                )
                try:
                    await self._read(connection, watch)
                finally:
                    watch.stop()
        except TimeoutError:
            raise SilenceError(f"no message for {timeout_s:.0f} s") from None

    async def _read(self, connection: Connection, watch: _Watch) -> Never:
        """Hand on message after message."""
        stats, on_message, now_s = self.stats, self._on_message, time.time

        def handle(data: MessageData) -> None:
            watch.heard = True
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
        text = _TEXTS[reason]
        if reason not in _STATUS_REASONS.values():
            text += f": {_details(exc)}"
        if reason == "too_big":
            self.stats.errors["too_big"] += 1
        elif reason == "conflict":
            if time.monotonic() - self._ended_s < self._timing.conflict_grace_s:
                level = logging.INFO
                text = "our last subscription is not forgotten yet (HTTP 409)"
        elif reason == "unauthorized":
            if await self._authentication.renew(self._offered):
                level = logging.INFO
                text += ", logged in"
            else:
                text += f", {self._authentication.problem}"
        self._log(level, reason, f"{text}; next attempt in {delay_s:.1f} s")

    def _set_up(self, up: int) -> None:
        self.stats.up = up
        if self._on_change is not None:
            self._on_change()

    def _log(self, level: int, cause: str, text: str) -> None:
        suffix = self._limit.admit((cause, level))
        if suffix is not None:
            log.log(level, "analyzer %s: %s%s", self.endpoint.name, text, suffix)

    def _log_bug(self, exc: Exception) -> None:
        suffix = self._limit.admit("bug")
        if suffix is not None:
            # The exception's own text may quote the message: only its traceback is logged as it is.
            shown = RuntimeError(f"{type(exc).__name__}: {printable(exc)}")
            log.error(
                "analyzer %s: a message could not be handled%s",
                self.endpoint.name,
                suffix,
                exc_info=(RuntimeError, shown, exc.__traceback__),
            )


def _server_name(connection: ClientConnection) -> str:
    """Return how the server calls itself, fit for a log, once it has said so."""
    names = []
    if connection.response is not None:  # as it is before the handshake only
        headers = connection.response.headers
        names = [*headers.get_all("X-Service-Type"), *headers.get_all("X-Host-ID")]
    if not any(names):
        raise NamelessServerError("the answer has neither X-Host-ID nor X-Service-Type")
    return printable(" ".join(names))


def _details(exc: Exception) -> str:
    """Return what happened, fit for a log."""
    text = str(exc) or type(exc).__name__
    # What websockets raises is general; what made it do so is not.
    if isinstance(exc, InvalidHandshake | ConnectionClosed) and exc.__cause__ is not None:
        text += f": {exc.__cause__}"
    return printable(text)


class Subscriptions:
    """The subscriptions to all of ``config.subscriber.endpoints``.

    A ``dns+`` endpoint is one subscription for each address of its name. Each has its own row
    in ``stats.analyzers``, which is removed with its address, so that their number stays
    bounded. The name has a row too: failed resolutions are counted there, and its ``up`` is
    1 while one of its addresses is subscribed.
    """

    def __init__(
        self,
        *,
        config: Config,
        stats: Stats,
        on_message: Callable[[MessageData, AnalyzerStats], None],
        resolve: Resolve = resolve,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        """Prepare the subscriptions. This blocks: it reads the certificates.

        Raises:
            ConfigError: A certificate cannot be used, or a text cannot be sent.

        """
        self._stats = stats
        self._on_message = on_message
        self._resolve = resolve
        self._timing = timing
        self._limit = LogLimit(timing.log_interval_s)
        self._subscriptions: dict[str, Subscription] = {}
        self._followed: dict[str, dict[str, tuple[Subscription, asyncio.Task[None]]]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wanted = self._used = self.prepare(config)
        self._changed = asyncio.Event()
        for url in config.subscriber.endpoints:
            self._introduce(url)

    @property
    def any_up(self) -> bool:
        """Whether at least one analyzer is subscribed to."""
        return any(subscription.stats.up for subscription in self._subscriptions.values())

    def prepare(self, config: Config) -> "Prepared":
        """Return what `configure` takes. This blocks: it reads the certificates.

        Raises:
            ConfigError: A certificate cannot be used, or a text cannot be sent.

        """
        _check_texts(config)
        ssl = None
        if any(Endpoint.parse(url).secure for url in config.subscriber.endpoints):
            try:
                ssl = client_context(config.tls)
            except ConfigError as exc:
                raise ConfigError(f"{config.source}: {exc}") from None
        return Prepared(config=config, ssl=ssl)

    def configure(self, prepared: "Prepared") -> None:
        """Subscribe to the endpoints of another configuration.

        Where nothing but they have changed, those that stay are not disturbed. Others are left, and
        subscribed to again, in the background.
        """
        self._wanted = prepared
        self._changed.set()

    async def run(self) -> None:
        """Stay subscribed to all until cancelled; then all subscriptions are closed properly."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for url in self._used.config.subscriber.endpoints:
                    if url not in self._tasks:
                        self._introduce(url)
                        self._tasks[url] = tasks.create_task(self._stay(url, tasks))
                await self._changed.wait()
                self._changed.clear()
                await self._leave_what_changes()

    def _introduce(self, url: str) -> None:
        """Give the endpoint what is seen of it before anybody has connected."""
        name = self._stats.analyzer(Endpoint.parse(url).name).name
        if not _is_followed(url) and name not in self._subscriptions:
            self._add(url)

    async def _stay(self, url: str, tasks: asyncio.TaskGroup) -> None:
        if _is_followed(url):
            await self._follow(url, tasks)
        else:
            await self._subscriptions[Endpoint.parse(url).name].run()

    async def _leave_what_changes(self) -> None:
        """Leave what the wanted configuration has not, or would have otherwise."""
        old, self._used = self._used, self._wanted
        stays = set(self._used.config.subscriber.endpoints) if old.is_like(self._used) else set()
        left = {url: task for url, task in self._tasks.items() if url not in stays}
        for url, task in left.items():
            task.cancel()
            del self._tasks[url]
        if left:
            await asyncio.wait(left.values())
        for url in left:
            for followed in self._followed.pop(url, {}).values():
                await self._leave(*followed)
            name = Endpoint.parse(url).name
            self._subscriptions.pop(name, None)
            self._stats.analyzers.pop(name, None)
            log.info("analyzer %s: left", name)

    def _add(
        self, url: str, *, address: str = "", on_change: Callable[[], None] | None = None
    ) -> Subscription:
        stats = self._stats.analyzer(Endpoint.parse(url, address=address).name)
        on_message = self._on_message
        subscription = Subscription(
            url=url,
            address=address,
            config=self._used.config,
            stats=stats,
            on_message=lambda data: on_message(data, stats),
            on_change=on_change,
            ssl=self._used.ssl,
            timing=self._timing,
        )
        self._subscriptions[stats.name] = subscription
        return subscription

    async def _follow(self, url: str, tasks: asyncio.TaskGroup) -> Never:
        """Keep subscribed to all addresses of the name in a ``dns+`` URL."""
        timing = self._timing
        endpoint = Endpoint.parse(url)
        row = self._stats.analyzer(endpoint.name)
        followed = self._followed.setdefault(url, {})
        delays = backoff(timing)

        def on_change() -> None:
            row.up = int(any(subscription.stats.up for subscription, _ in followed.values()))

        while True:
            try:
                addresses = await self._resolve(endpoint.host, endpoint.port)
            except (OSError, UnicodeError) as exc:
                row.reconnects["unresolved"] += 1
                delay_s = timing.resolve_interval_s if followed else next(delays)
                self._log(
                    endpoint.name, f"{_TEXTS['unresolved']}: {_details(exc)}", cause="unresolved"
                )
            else:
                if len(addresses) > MAX_ADDRESSES:
                    self._log(
                        endpoint.name,
                        f"{len(addresses)} addresses, of which the first {MAX_ADDRESSES} are used",
                        cause="addresses",
                    )
                    # Not those that happen to come first, which change.
                    addresses = sorted(addresses)[:MAX_ADDRESSES]
                for address in followed.keys() - set(addresses):
                    subscription, task = followed.pop(address)
                    await self._leave(subscription, task)
                    log.info(
                        "analyzer %s: left, its name has another address", subscription.stats.name
                    )
                for address in addresses:
                    name = host_and_port(address, endpoint.port)
                    # One that another endpoint has as well is subscribed to once.
                    if name not in self._subscriptions:
                        added = self._add(url, address=address, on_change=on_change)
                        followed[address] = (added, tasks.create_task(added.run()))
                on_change()
                delays = backoff(timing)
                delay_s = timing.resolve_interval_s
            await asyncio.sleep(delay_s)

    async def _leave(self, subscription: Subscription, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait([task])
        del self._subscriptions[subscription.stats.name]
        del self._stats.analyzers[subscription.stats.name]

    def _log(self, name: str, text: str, *, cause: str) -> None:
        suffix = self._limit.admit((name, cause))
        if suffix is not None:
            log.warning("analyzer %s: %s%s", name, text, suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A configuration that can be subscribed with. ``ssl`` is None where no endpoint needs it."""

    config: Config
    ssl: ssl_module.SSLContext | None

    def is_like(self, other: "Prepared") -> bool:
        """Tell whether a subscription to the same endpoint would be the same.

        It is not where there is TLS, as files may have changed under their old names.
        """
        return (
            self.ssl is None
            and other.ssl is None
            and _without_endpoints(self.config) == _without_endpoints(other.config)
        )


def _without_endpoints(config: Config) -> object:
    return (
        config.host_id,
        config.credentials,
        config.cookies,
        replace(config.subscriber, endpoints=()),
    )


def _is_followed(url: str) -> bool:
    return url.startswith("dns+")


def _check_texts(config: Config) -> None:
    """Refuse what websockets would refuse with every attempt, quoting secrets in its error."""
    texts = {
        "host_id": config.host_id,
        "pipeline.subscriber.capture_id": config.subscriber.capture_id,
        **{f"http.cookie.{name}": value for name, value in config.cookies.items()},
    }
    for key, text in texts.items():
        if not (text.isascii() and text.isprintable()) and text:
            raise ConfigError(
                f"{config.source}: {key}: is sent in an HTTP header and must be printable ASCII"
            )
