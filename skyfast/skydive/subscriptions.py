"""Starts and stops the subscriptions to all analyzers, and resolves ``dns+`` names."""

import asyncio
import hashlib
import logging
import ssl as ssl_module
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Never

from skyfast.config.endpoint import Endpoint
from skyfast.config.model import TLS, Config
from skyfast.config.yaml_nodes import ConfigError
from skyfast.runtime.logs import LogLimit
from skyfast.skydive.auth import resolve
from skyfast.skydive.silence import Activity, Reporting
from skyfast.skydive.subscription import (
    DEFAULT_TIMING,
    REASON_TEXTS,
    Subscription,
    Timing,
    backoff,
    error_details,
)
from skyfast.skydive.tls import client_context
from skyfast.skydive.websocket import MessageData
from skyfast.stats import AnalyzerStats, Failure, Stats

log = logging.getLogger("skyfast.subscription")

MAX_ADDRESSES: Final = 64
"""Maximum number of addresses of a ``dns+`` name that are used."""

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Subscriptions:
    """All subscriptions. A ``dns+`` endpoint has one subscription per address of its host name.

    Each subscription and each ``dns+`` name has an entry in ``stats.analyzers``. The entry of a
    ``dns+`` name counts failed resolutions. In this entry, ``up`` is 1 while the subscription to at
    least one of the addresses is up.

    The *targets* are the subscriptions that should exist, according to the configuration and DNS.
    """

    def __init__(
        self,
        *,
        config: Config,
        stats: Stats,
        on_message: Callable[[MessageData, AnalyzerStats], None],
        on_change: Callable[[], None] = lambda: None,
        activity: Activity | None = None,
        resolve: Resolve = resolve,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        """Blocks, because it reads the certificates.

        ``on_message`` must count each message in the `AnalyzerStats` that it gets. ``on_change`` is
        called when `delivering` may have changed.

        Raises:
            ConfigError: A certificate is unusable, or a value cannot be sent in a header.

        """
        self._stats = stats
        self._on_message = on_message
        self._on_change = on_change
        self._resolve = resolve
        self._timing = timing
        self._limit = LogLimit(timing.log_interval_s)
        self._reporting = Reporting(updates=stats, activity=activity, timing=timing.silence)
        self._prepared = self.prepare(config)
        self._addresses: dict[Endpoint, list[str]] = {}
        self._changed = asyncio.Event()
        """Set when the configuration or addresses have changed."""
        self._resolvers: dict[Endpoint, asyncio.Task[Never]] = {}
        self._running: dict[str, _Running] = {}
        self._sync_stats(self._targets())

    @property
    def any_up(self) -> bool:
        return any(running.subscription.stats.up for running in self._running.values())

    @property
    def delivering(self) -> set[str]:
        """The names of the subscriptions that deliver."""
        return {name for name, running in self._running.items() if running.subscription.delivers}

    @property
    def subscribed(self) -> Set[str]:
        """The names of all subscriptions, up or down."""
        return self._running.keys()

    def state(self, name: str) -> str:
        """Return the state of a subscription as text for the log, such as ``not subscribed``."""
        running = self._running.get(name)
        if running is None:
            return "no longer subscribed"
        if running.subscription.delivers:
            return "delivering again"
        return "silent" if running.subscription.stats.up else "not subscribed"

    def prepare(self, config: Config) -> "Prepared":
        """Validate a configuration for `configure`. Blocks, because it reads certificates.

        Raises:
            ConfigError: A certificate is unusable, or a value cannot be sent in a header.

        """
        _check_headers(config)
        if not any(endpoint.secure for endpoint in config.subscriber.endpoints):
            return Prepared(config=config, ssl=None, digests=())
        try:
            return Prepared(
                config=config, ssl=client_context(config.tls), digests=_digests(config.tls)
            )
        except ConfigError as exc:
            raise ConfigError(f"{config.source}: {exc}") from None

    def configure(self, prepared: "Prepared") -> None:
        """Apply a new configuration in the background.

        Subscriptions that ``prepared`` no longer contains are closed. Subscriptions whose settings
        change are restarted, and keep their counters. All others continue.
        """
        self._prepared = prepared
        self._changed.set()

    async def run(self) -> None:
        """Stay subscribed to all targets until cancelled; then close all subscriptions cleanly."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                targets = self._targets()
                predecessors = await self._stop_obsolete(targets)
                self._start_missing(targets, predecessors, tasks)
                self._sync_stats(targets)
                self._reporting.analyzers = max(1, len(self._running))
                self._reporting.activity.capture_id = self._prepared.config.subscriber.capture_id
                self._on_change()
                await self._changed.wait()

    def _targets(self) -> dict[str, "_Target"]:
        targets: dict[str, _Target] = {}
        # An analyzer that is configured both by address and by name gets only one subscription.
        endpoints = self._prepared.config.subscriber.endpoints
        for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.follows_dns):
            for address in self._addresses.get(endpoint, [] if endpoint.follows_dns else [""]):
                target = _Target(
                    endpoint=endpoint,
                    address=address,
                    settings=self._prepared.settings(endpoint),
                    prepared=self._prepared,
                )
                targets.setdefault(endpoint.at(address).name, target)
        return targets

    async def _stop_obsolete(self, targets: Mapping[str, "_Target"]) -> dict[str, Subscription]:
        """Stop subscriptions whose target has changed or is not in ``targets``.

        Returns the stopped subscriptions. The keys are their names.
        """
        endpoints = self._prepared.config.subscriber.endpoints
        removed = self._resolvers.keys() - set(endpoints)
        stopped = {
            name: running
            for name, running in self._running.items()
            if running.target != targets.get(name)
        }
        tasks: list[asyncio.Task[Any]] = [self._resolvers[endpoint] for endpoint in removed]
        tasks += [running.task for running in stopped.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for endpoint in removed:
            del self._resolvers[endpoint]
            self._addresses.pop(endpoint, None)
        for name, running in stopped.items():
            del self._running[name]
            if name in targets:
                reason = "subscribing again: settings changed"
            elif running.target.endpoint in endpoints:
                reason = "unsubscribed: the host name no longer resolves to this address"
            else:
                reason = "unsubscribed: no longer configured"
            log.info("analyzer %s: %s", name, reason)
        return {name: running.subscription for name, running in stopped.items()}

    def _start_missing(
        self,
        targets: Mapping[str, "_Target"],
        predecessors: Mapping[str, Subscription],
        tasks: asyncio.TaskGroup,
    ) -> None:
        for endpoint in self._prepared.config.subscriber.endpoints:
            if endpoint.follows_dns and endpoint not in self._resolvers:
                self._resolvers[endpoint] = tasks.create_task(self._watch_addresses(endpoint))
        for name, target in targets.items():
            if name not in self._running:
                subscription = self._subscription(target, predecessors.get(name))
                task = tasks.create_task(subscription.run())
                self._running[name] = _Running(target, subscription, task)

    def _subscription(self, target: "_Target", predecessor: Subscription | None) -> Subscription:
        endpoint = target.endpoint.at(target.address)
        stats, on_message = self._stats.analyzer(endpoint.name), self._on_message
        return Subscription(
            endpoint=endpoint,
            config=target.prepared.config,
            stats=stats,
            reporting=self._reporting,
            on_message=lambda data: on_message(data, stats),
            on_change=self._on_state_change,
            predecessor=predecessor,
            ssl=target.prepared.ssl,
            timing=self._timing,
        )

    def _sync_stats(self, targets: Iterable[str]) -> None:
        """Make ``stats.analyzers`` contain exactly the entries of all endpoints and targets."""
        endpoints = self._prepared.config.subscriber.endpoints
        names = dict.fromkeys([*(endpoint.name for endpoint in endpoints), *targets])
        for name in self._stats.analyzers.keys() - names.keys():
            del self._stats.analyzers[name]
        for name in names:
            self._stats.analyzer(name)
        self._update_name_states()

    def _on_state_change(self) -> None:
        self._update_name_states()
        self._on_change()

    def _update_name_states(self) -> None:
        for endpoint, addresses in self._addresses.items():
            # A subscription that has the same name as the endpoint sets ``up`` itself.
            if endpoint.name not in self._running:
                names = {endpoint.at(address).name for address in addresses}
                ups = (
                    running.subscription.stats.up
                    for name, running in self._running.items()
                    if name in names
                )
                self._stats.analyzer(endpoint.name).set_up(int(any(ups)))

    async def _watch_addresses(self, endpoint: Endpoint) -> Never:
        timing = self._timing
        delays = backoff(timing)
        while True:
            try:
                addresses = await self._resolve(endpoint.host, endpoint.port)
            except (OSError, UnicodeError) as exc:
                stats = self._stats.analyzer(endpoint.name)
                stats.reconnects["unresolved"] += 1
                delay_s = (
                    timing.resolve_interval_s if self._addresses.get(endpoint) else next(delays)
                )
                text = f"{REASON_TEXTS['unresolved']}: {error_details(exc)}"
                stats.last_failure = Failure("unresolved", text)
                self._log(endpoint.name, text, cause="unresolved")
            else:
                if len(addresses) > MAX_ADDRESSES:
                    self._log(
                        endpoint.name,
                        f"the host name resolves to {len(addresses)} addresses;"
                        f" using the first {MAX_ADDRESSES}",
                        cause="addresses",
                    )
                    # Sort the addresses, because their order can differ between responses.
                    addresses = sorted(addresses)[:MAX_ADDRESSES]
                if set(addresses) != set(self._addresses.get(endpoint, [])):
                    self._addresses[endpoint] = addresses
                    self._changed.set()
                delays = backoff(timing)
                delay_s = timing.resolve_interval_s
            await asyncio.sleep(delay_s)

    def _log(self, name: str, text: str, *, cause: str) -> None:
        self._limit.warn(log, (name, cause), f"analyzer {name}: {text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A validated configuration with its TLS settings."""

    config: Config
    ssl: ssl_module.SSLContext | None
    """None if no endpoint uses TLS."""
    digests: tuple[bytes, ...]
    """Hashes of the certificate files, because the files can change while their paths stay the
    same."""

    def settings(self, endpoint: Endpoint) -> object:
        """Return the settings whose change restarts a subscription to ``endpoint``."""
        return (
            self.config.host_id,
            self.config.credentials,
            self.config.cookies,
            replace(self.config.subscriber, endpoints=()),
            self.digests if endpoint.secure else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """A subscription that should exist. If a target changes, its subscription is restarted."""

    endpoint: Endpoint
    address: str
    """The address to connect to; empty if the host of the endpoint is used."""
    settings: object
    prepared: Prepared = field(compare=False)


@dataclass(frozen=True, slots=True)
class _Running:
    target: _Target
    subscription: Subscription
    task: asyncio.Task[None]


def _digests(tls: TLS) -> tuple[bytes, ...]:
    paths = [path for path in (tls.ca_cert, tls.client_cert, tls.client_key) if path]
    try:
        return tuple(hashlib.sha256(Path(path).read_bytes()).digest() for path in paths)
    except OSError as exc:  # pragma: no cover - file deleted after the configuration was read
        raise ConfigError(f"tls: {exc.filename!r} cannot be read: {exc.strerror}") from None


def _check_headers(config: Config) -> None:
    """Reject invalid header values. An error of websockets would quote them, even secret ones."""
    values = {
        "host_id": config.host_id,
        "pipeline.subscriber.capture_id": config.subscriber.capture_id,
        **{f"http.cookie.{name}": value for name, value in config.cookies.items()},
    }
    for key, value in values.items():
        if not (value.isascii() and value.isprintable()) and value:
            raise ConfigError(
                f"{config.source}: {key}: the value must be printable ASCII, because it is"
                " sent in an HTTP header"
            )
