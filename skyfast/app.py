"""Wires the parts together, starts and stops them. The only module that knows all others."""

import asyncio
import dataclasses
import logging
import platform
import signal
import time
from contextlib import AsyncExitStack

import uvloop

from skyfast import __version__, memory
from skyfast._table import Table
from skyfast.clock import Clock
from skyfast.config import Config, redact_url
from skyfast.exposition import Exposition
from skyfast.ingest import Ingest
from skyfast.plan import default_plan
from skyfast.selfmetrics import Stats
from skyfast.subscriber import Subscriptions
from skyfast.topology import Interfaces, TopologyPoller
from skyfast.web import WebServer
from skyfast.wire import flow_types

EXPIRY_INTERVAL_S = 0.5
"""How often the table is asked for what has expired; deadlines are full seconds."""

EXPIRY_SLICE_S = 0.002
"""How long expiry may hold up the event loop at a time."""

EXPIRY_ROWS = 256
"""Rows between two looks at the clock, about 0.1 ms."""

log = logging.getLogger(__name__)


class App:
    """All parts of a running skyfast."""

    def __init__(self, config: Config) -> None:
        """Build the parts; nothing is opened yet."""
        self._config = config
        self.stats = Stats()
        self.clock = Clock()
        plan = default_plan()
        types = flow_types(plan)
        self.table = Table(
            plan,
            types,
            max_connections=config.store.max_connections,
            max_flows=config.store.max_flows,
            timeout_s=config.store.connection_timeout_s + config.store.connection_grace_s,
        )
        self.ingest = Ingest(
            config=config, types=types, table=self.table, stats=self.stats, now=self.clock.now
        )
        self.interfaces = Interfaces(
            interval_s=config.store.interfaces_interval_s,
            connection_timeout_s=config.store.connection_timeout_s,
            stats=self.stats.topology,
        )
        self.poller = TopologyPoller(
            config=config,
            interfaces=self.interfaces,
            now=self.clock.now,
            stats=self.stats.topology,
        )
        self.subscriptions = Subscriptions(
            config=config, stats=self.stats, on_message=self.ingest.message
        )
        self.web = WebServer(
            config=config,
            exposition=Exposition(
                table=self.table,
                interfaces=self.interfaces,
                stats=self.stats,
                now=self.clock.now,
            ),
            ready=lambda: self.subscriptions.any_up,
            stats=self.stats.scrape,
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
                        ("subscriptions", self.subscriptions.run()),
                        ("topology", self.poller.run()),
                        ("expiry", self._expire()),
                    )
                ]
                await stopping.wait()
                for part in parts:
                    part.cancel()
        finally:
            await self.web.stop()

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
            await asyncio.sleep(EXPIRY_INTERVAL_S)


async def _serve(config: Config, *, demo: bool) -> bool:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        if demo:
            config = await _with_demo(config, stack)
        app = App(config)
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


async def _with_demo(config: Config, stack: AsyncExitStack) -> Config:
    """Start the demo analyzer and return the configuration that subscribes to it."""
    from skyfast.demo import DemoAnalyzer

    analyzer = DemoAnalyzer()
    port = await analyzer.start()
    stack.push_async_callback(analyzer.stop)
    endpoint = f"ws://127.0.0.1:{port}/ws/subscriber/flow"
    return dataclasses.replace(
        config, subscriber=dataclasses.replace(config.subscriber, endpoints=(endpoint,))
    )


def page_url(address: str, port: int) -> str:
    """Return where the page can be looked at from this machine."""
    if address in {"", "0.0.0.0", "::"}:  # noqa: S104
        address = "127.0.0.1"
    return f"http://{f'[{address}]' if ':' in address else address}:{port}/metrics"


def run(config: Config, *, demo: bool) -> bool:
    """Run until SIGTERM or SIGINT; return False when it could not run, which was logged.

    Raises ConfigError where something that the configuration names cannot be used.
    """
    memory.keep_heap()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, demo=demo))
