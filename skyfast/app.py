"""Wires the parts together, starts, reconfigures and stops them; the only one that knows all."""

import asyncio
import contextlib
import dataclasses
import logging
import platform
import signal
import time
from collections.abc import Callable, Set
from contextlib import AsyncExitStack
from typing import Any

import uvloop

from skyfast import __version__, filters, logs, memory
from skyfast._table import Table
from skyfast.captures import Captures
from skyfast.cardinality import Cardinality
from skyfast.catalogue import make_plan
from skyfast.clock import Clock
from skyfast.config import Config, ConfigError, Store, redact_url
from skyfast.exposition import Exposition, Source
from skyfast.ingest import Ingest
from skyfast.names import Lookup, Names
from skyfast.plan import Plan
from skyfast.selfmetrics import Stats
from skyfast.subscriber import Subscriptions
from skyfast.topology import NAMES_INTERVAL_S, Interfaces, TopologyPoller
from skyfast.web import WebServer
from skyfast.wire import FlowTypes, flow_types

EXPIRY_INTERVAL_S = 0.5
"""How often the table is asked for what has expired; deadlines are full seconds."""

EXPIRY_SLICE_S = 0.002
"""How long expiry may hold up the event loop at a time."""

EXPIRY_ROWS = 256
"""Rows between two looks at the clock, about 0.1 ms."""

NAMES_WAIT_S = 5.0
"""How long the subscriptions wait for the topology's first answer, where labels are names."""

log = logging.getLogger(__name__)


class App:
    """All parts of a running skyfast.

    What depends on the configuration is made by `_prepare_...` methods from a new one, without
    touching what runs, and then put in place; so a configuration that cannot be used leaves all
    as it was.
    """

    def __init__(self, config: Config, *, load: Callable[[], Config]) -> None:
        """Build the parts; nothing is opened yet. ``load`` reads the configuration anew."""
        self._config = config
        self._load = load
        self._reloading = asyncio.Lock()
        self._polling: asyncio.Task[None] | None = None
        self.stats = Stats()
        self.clock = Clock()
        self.names = Names(keep_s=_longest_s(config.store))
        self.plan = make_plan(config, names=self.names)
        self._types = _types(config, self.plan)
        self.table = Table(self.plan, self._types, **_limits(config.store))
        self.captures = self._new_captures(config)
        self.interfaces = self._new_interfaces(config)
        self.poller = self._new_poller(config, self.interfaces, self.plan)
        self.ingest = self._new_ingest(config)
        self.subscriptions = Subscriptions(
            config=config,
            stats=self.stats,
            # Not the method itself: a reload puts another ingest in this one's place.
            on_message=lambda data, analyzer: self.ingest.message(data, analyzer),
        )
        self.exposition = Exposition(
            source=self._new_source(config), stats=self.stats, now=self.clock.now
        )
        self.web = WebServer(
            config=config,
            exposition=self.exposition,
            ready=lambda: self.subscriptions.any_up,
            stats=self.stats.scrape,
            reload=self.reload if config.web.enable_reload else None,
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until ``stopping`` is set.

        Raises OSError when the page cannot be served where the configuration wants it, and an
        ExceptionGroup when a part ends by a fault of its own.
        """
        await self.web.start()
        log.info("serving %s", page_url(self._config.store.listen_address, self.web.port))
        for url in self._config.subscriber.endpoints:
            log.info("subscribing to %s as %s", redact_url(url), self._config.host_id)
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = [
                    tasks.create_task(part, name=name)
                    for name, part in (
                        ("subscriptions", self._subscribe()),
                        ("topology", self._poll()),
                        ("expiry", self._expire()),
                    )
                ]
                await stopping.wait()
                for part in parts:
                    part.cancel()
        finally:
            await self.web.stop()

    async def reload(self) -> str | None:
        """Read the configuration anew and use it; return why that cannot be, or None.

        What cannot be used as a whole changes nothing. No counter is lost, unless the labels or the
        metrics are others: then the table is.
        """
        async with self._reloading:
            try:
                config = await asyncio.to_thread(self._load)
                await self._configure(config)
            except ConfigError as error:
                self.stats.config.last_reload_successful = 0
                log.error("the configuration was not reloaded: %s", error)
                return str(error)
            self.stats.config.last_reload_successful = 1
            self.stats.config.last_reload_success_timestamp_s = time.time()
            log.info("the configuration was reloaded")
            return None

    async def _configure(self, config: Config) -> None:
        """Put ``config`` in the place of the present one.

        Raises ConfigError, with nothing changed, where a file that it names cannot be used.
        """
        old = self._config
        is_other_page = _shape(config) != _shape(old)
        interfaces = self.interfaces
        if config.store.interfaces_interval_s != old.store.interfaces_interval_s or is_other_page:
            interfaces = self._new_interfaces(config)
        plan = make_plan(config, names=self.names) if is_other_page else self.plan
        types = _types(config, plan)
        poller = self._new_poller(config, interfaces, plan)
        subscriptions = await asyncio.to_thread(self.subscriptions.prepare, config)
        # From here on, nothing fails.
        self._config, self.plan, self._types = config, plan, types
        if is_other_page:
            self.table = Table(plan, types, **_limits(config.store))
            self.captures = self._new_captures(config)
            log.warning("labels or metrics have changed: all connections begin anew")
        else:
            self.table.use(types)
            self.table.limit(**_limits(config.store))
        self.names.keep(_longest_s(config.store))
        self.ingest = self._new_ingest(config)
        self.interfaces = interfaces
        self.exposition.source = self._new_source(config)
        self.web.configure(config.web, reload=self.reload if config.web.enable_reload else None)
        logs.set_level(config.logging.level)
        if (config.store.listen_address, config.store.port) != (
            old.store.listen_address,
            old.store.port,
        ):
            log.warning("listen_address and port stay as they are until the next start")
        self.poller = poller
        if self._polling is not None:
            self._polling.cancel()
        self.subscriptions.configure(subscriptions)

    def _new_captures(self, config: Config) -> Captures:
        return Captures(naming=config.store.naming, stats=self.stats.captures)

    def _new_interfaces(self, config: Config) -> Interfaces:
        return Interfaces(
            interval_s=config.store.interfaces_interval_s,
            connection_timeout_s=config.store.connection_timeout_s,
            stats=self.stats.topology,
            naming=config.store.naming,
        )

    def _new_poller(self, config: Config, interfaces: Interfaces, plan: Plan) -> TopologyPoller:
        return TopologyPoller(
            config=config,
            interfaces=interfaces,
            now=self.clock.now,
            stats=self.stats.topology,
            names=self.names if _has_names(plan) else None,
            renamed=self._relabel,
        )

    def _new_ingest(self, config: Config) -> Ingest:
        classifier = filters.classifier(config.classify.cluster_net_masks)
        return Ingest(
            types=self._types,
            table=self.table,
            admitted=filters.admission(
                config.filter,
                classifier,
                requirements=self.plan.requirements,
                skipped=self.stats.flows_skipped,
                filtered=self.stats.flows_filtered,
            ),
            captures=self.captures,
            stats=self.stats,
            now=self.clock.now,
        )

    def _new_source(self, config: Config) -> Source:
        return Source(
            table=self.table,
            cardinality=Cardinality(table=self.table, view=self.plan.views[0]),
            views=tuple(view.prefix for view in config.store.views),
            interfaces=self.interfaces,
            captures=self.captures,
            standard_names=config.store.naming == "standard",
        )

    async def _subscribe(self) -> None:
        if _has_names(self.plan):
            # A flow that came before its names would change its labels at once.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NAMES_WAIT_S):
                    await self.names.ready.wait()
        await self.subscriptions.run()

    async def _poll(self) -> None:
        """Ask for the topology, by another poller after each reload."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._polling = tasks.create_task(self._poll_until_cancelled(self.poller))
                await asyncio.wait([self._polling])

    async def _poll_until_cancelled(self, poller: TopologyPoller) -> None:
        await poller.run()
        await asyncio.Event().wait()  # there is nothing to ask for

    def _relabel(self, lookup: Lookup, keys: Set[str]) -> None:
        self.table.relabel([(lookup, keys)])

    async def _expire(self) -> None:
        """Take out what has expired, in slices between which everything else has its turn."""
        paused_s = 0.0
        while True:
            now = self.clock.now()
            if self.clock.paused_s > paused_s:
                log.warning(
                    "paused for %.0f s; all deadlines move by as much",
                    self.clock.paused_s - paused_s,
                )
                paused_s = self.clock.paused_s
            slice_ends = time.monotonic() + EXPIRY_SLICE_S
            while self.table.expire(now, EXPIRY_ROWS):
                if time.monotonic() > slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = time.monotonic() + EXPIRY_SLICE_S
            self.interfaces.expire(now)
            self.captures.expire(now)
            await asyncio.sleep(EXPIRY_INTERVAL_S)


def _types(config: Config, plan: Plan) -> FlowTypes:
    return flow_types(plan, also=filters.reads(config.filter))


def _has_names(plan: Plan) -> bool:
    return any(column.volatile for column in plan.columns)


def _limits(store: Store) -> dict[str, Any]:
    """Return the table's bounds."""
    return {
        "max_connections": store.max_connections,
        "max_flows": store.max_flows,
        "timeout_s": store.connection_timeout_s + store.connection_grace_s,
        "view_timeouts_s": [view.timeout_s for view in store.views],
    }


def _longest_s(store: Store) -> float:
    """Return for how long names are to be remembered: no row lives longer without a report."""
    rows_s = [store.connection_timeout_s + store.connection_grace_s]
    rows_s += [view.timeout_s for view in store.views]
    return max(*rows_s, 3 * (store.interfaces_interval_s or NAMES_INTERVAL_S))


def _shape(config: Config) -> object:
    """Return what the table is built of: where it is another, so must the table be."""
    store = config.store
    views = [dataclasses.replace(view, timeout_s=0.0) for view in (store.main, *store.views)]
    has_tags = any(label.name == "tag" for view in views for label in view.labels)
    return (
        views,
        store.include_icmp,
        store.rewrites,
        store.overflow,
        store.deduplicate,
        store.naming,
        config.classify if has_tags else None,
    )


async def _serve(config: Config, load: Callable[[], Config], *, demo: bool) -> bool:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        if demo:
            endpoint = await _start_demo(stack)
            app = App(
                _subscribing_to(endpoint, config), load=lambda: _subscribing_to(endpoint, load())
            )
        else:
            app = App(config, load=load)
        reloads: set[asyncio.Task[str | None]] = set()

        def reload() -> None:
            task = asyncio.create_task(app.reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, reload)
        memory.freeze()
        log.info("skyfast %s, Python %s", __version__, platform.python_version())
        try:
            await app.run(stopping)
        except OSError as error:
            url = page_url(config.store.listen_address, config.store.port)
            log.error("cannot serve %s: %s", url, error)
            return False
        except BaseExceptionGroup:
            log.critical("stopped by a fault of its own", exc_info=True)
            return False
    log.info("stopped")
    return True


async def _start_demo(stack: AsyncExitStack) -> str:
    """Start the demo analyzer and return its endpoint."""
    from skyfast.demo import DemoAnalyzer

    analyzer = DemoAnalyzer()
    port = await analyzer.start()
    stack.push_async_callback(analyzer.stop)
    return f"ws://127.0.0.1:{port}/ws/subscriber/flow"


def _subscribing_to(endpoint: str, config: Config) -> Config:
    subscriber = dataclasses.replace(config.subscriber, endpoints=(endpoint,))
    return dataclasses.replace(config, subscriber=subscriber)


def page_url(address: str, port: int) -> str:
    """Return where the page can be looked at from this machine."""
    if address in {"", "0.0.0.0", "::"}:  # noqa: S104
        address = "127.0.0.1"
    return f"http://{f'[{address}]' if ':' in address else address}:{port}/metrics"


def run(config: Config, load: Callable[[], Config], *, demo: bool) -> bool:
    """Run until SIGTERM or SIGINT; return False when it could not run, which was logged.

    ``load`` reads the configuration anew, for SIGHUP. Raises ConfigError where something that the
    configuration names cannot be used.
    """
    memory.keep_heap()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, load, demo=demo))
