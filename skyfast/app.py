"""Runs, reloads and stops the parts that `skyfast.pipeline` builds, and relabels flows.

Labels can contain names of addresses and of capture points. If a name changes, the flows with the
old name move to connections with the new name (relabeling).
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING

from skyfast import pipeline
from skyfast.config import cost, traffic_warnings
from skyfast.config.endpoint import Endpoint
from skyfast.config.loader import changed, uses_default_analyzer
from skyfast.config.model import Config, Note
from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows.own_names import OwnNames, changed_addresses
from skyfast.flows.plan import Names
from skyfast.flows.selection import changed_fields
from skyfast.pipeline import Parts, Shared
from skyfast.runtime import logs, names_file, systemd
from skyfast.runtime.clock import Clock
from skyfast.runtime.names_file import NamesFile
from skyfast.skydive.reporting_gap import SLACK_S, ReportingGap
from skyfast.skydive.silence import Activity
from skyfast.skydive.subscriptions import Subscriptions
from skyfast.skydive.topology import TopologyPoller
from skyfast.skydive.websocket import MessageData
from skyfast.stats import AnalyzerStats, Failure, Stats
from skyfast.web import empty_labels, listen
from skyfast.web.empty_labels import EmptyLabelCheck
from skyfast.web.exposition import Exposition
from skyfast.web.listen import AS_CONFIGURED, Listen
from skyfast.web.server import ReloadFunction, WebServer
from skyfast.web.status import Replay, Status
from skyfast.wording import counted

if TYPE_CHECKING:
    from skyfast.replay.recorder import Recorder
    from skyfast.web.auth import WebSecurity

EXPIRY_INTERVAL_S = 0.5
"""Interval at which expired flows and rows are removed from the table.

Deadlines of rows are whole seconds, so a shorter interval would gain little."""

EXPIRY_SLICE_S = 0.002
"""Maximum time for which expiry blocks the event loop before other tasks can run."""

EXPIRY_ROWS = 256
"""Maximum number of rows that one call of `Table.expire` visits; a call takes about 0.1 ms."""

STATUS_PAGE_WAIT_S = 3.0
"""Maximum time to wait for subscriptions before the URL of the status page is logged.

This log message should be the last one at startup, because people read the last line first."""

RELABEL_FLOWS = 1_000
"""Maximum number of flows to relabel before other tasks can run.

Relabeling this number of flows takes a few milliseconds."""

COMPARED_STRINGS = 20_000
"""Maximum number of strings that a call of `Table.strings` returns.

When own names (names given by users) change, skyfast searches the strings of the table for
addresses with new names. A call takes a few milliseconds."""

RELABEL_RETRY_S = 1.0
"""Delay before the next attempt if memory runs out during relabeling."""

FULL_INTERVAL_S = 60.0
"""Minimum time between two log messages about a full table."""

MAX_ANNOUNCED = 8
"""Maximum number of analyzers that a log message names."""

log = logging.getLogger("skyfast.app")


class _WebConfigError(ConfigError):
    """The web configuration (the file of ``--web.config.file``) cannot be used."""


class App:
    def __init__(
        self,
        config: Config,
        *,
        load: Callable[[], Config],
        security: "WebSecurity | None" = None,
        recorder: "Recorder | None" = None,
        records_topology: bool = True,
        listen_at: Listen = AS_CONFIGURED,
        replay: Replay | None = None,
    ) -> None:
        """Build the parts without opening sockets.

        * ``load`` reads the configuration again, for a reload.
        * ``recorder`` gets a copy of each message. If ``records_topology`` is true, ``recorder``
          also gets a copy of each response of the topology API.
        * ``replay`` describes the recordings that replace the analyzers.
        """
        self._load = load
        self._security = security
        self._manager = systemd.Notifier(os.environ)
        self._served_at = None if listen_at.is_fixed else listen.configured(config)
        self._reloading = asyncio.Lock()
        self._polling: asyncio.Task[None] | None = None
        self._began_s = time.monotonic()
        self.stats = Stats()
        self.clock = Clock()
        self._gap = ReportingGap()
        self._warned: tuple[float, float] | None = None
        self._activity = Activity()
        self._renamed: deque[tuple[Names, Set[str]]] = deque()
        self._renamed_own: deque[tuple[OwnNames, OwnNames]] = deque()
        self._has_renamed = asyncio.Event()
        self._all_up = asyncio.Event()
        self._limit = logs.LogLimit()
        self._shared = Shared(
            stats=self.stats,
            clock=self.clock,
            activity=self._activity,
            relabel=self._rename,
            observe_topology=recorder.observe if recorder and records_topology else None,
        )
        self._parts = pipeline.build(config, None, self._shared)
        self._names_file = NamesFile(self.stats)
        self._names_file.use(self._parts.own, config.export)
        self._poller = self._parts.poller
        self._parts.record_limits(self.stats)
        self.subscriptions = Subscriptions(
            config=config,
            stats=self.stats,
            on_message=self._receiver(recorder),
            on_change=self._update_hold,
            activity=self._activity,
        )
        self.exposition = Exposition(
            source=self._parts.source, stats=self.stats, now=self.clock.now
        )
        self.status = Status(
            source=self._parts.status_source,
            stats=self.stats,
            ready=lambda: self.subscriptions.any_up,
            now=self.clock.now,
            replay=replay,
        )
        self.web = WebServer(
            config=config,
            exposition=self.exposition,
            status=self.status,
            ready=lambda: self.subscriptions.any_up,
            stats=self.stats.scrape,
            reload=self._reload_by_web(config),
            security=security,
            listen_at=listen_at,
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until ``stopping`` is set.

        Raises ListenError if the HTTP server cannot listen, and an ExceptionGroup if a task
        fails with an unhandled exception.
        """
        await self.web.start()
        if self._served_at and self._served_at.port not in (0, self.web.port):
            log.info("port %d is in use; using a free port", self._served_at.port)
        secure = _is_secure(self._security)
        listening = [
            f"{listen.describe(address)} ({listen.url(address, secure=secure)})"
            for address in self.web.addresses
        ]
        for text in listening:
            log.info("listening on %s", text)
        self._manager.ready(f"listening on {', '.join(listening)}")
        _log_new_analyzers(self._parts.config)
        log.info("%s", _cost_summary(self._parts))
        if self._parts.own.sources.are_set:
            log.info("names from 'names' and 'names_file': %s", self._parts.own.summary())
        traffic_warnings.write(self._parts.config)
        status_page = listen.url(self.web.addresses[0], secure=secure)
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = [
                    tasks.create_task(part, name=name)
                    for name, part in (
                        ("subscriptions", self._subscribe()),
                        ("topology", self._poll()),
                        ("relabel", self._relabel()),
                        ("names file", self._watch_names()),
                        ("expiry", self._expire()),
                        ("table limits", self._warn_when_full()),
                        ("empty labels", self._check_labels()),
                        ("history", self.status.run()),
                        ("watchdog", self._manager.watchdog()),
                        ("status page", self._log_status_page(status_page)),
                    )
                ]
                await stopping.wait()
                for part in parts:
                    part.cancel()
        finally:
            self._manager.stopping()
            await self.web.stop()

    async def _log_status_page(self, status_page: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_PAGE_WAIT_S):
                await self._all_up.wait()
        log.info("status page: %s", status_page)

    def _receiver(
        self, recorder: "Recorder | None"
    ) -> Callable[[MessageData, AnalyzerStats], None]:
        # A reload replaces `ingest`, so `receive` looks up `ingest` for each message.
        def receive(data: MessageData, analyzer: AnalyzerStats) -> None:
            self._parts.ingest.message(data, analyzer)

        if recorder is None:
            return receive
        keep = recorder.message

        def record(data: MessageData, analyzer: AnalyzerStats) -> None:
            keep(data, analyzer.name)
            receive(data, analyzer)

        return record

    def summary(self) -> str:
        seconds = time.monotonic() - self._began_s
        flows = sum(analyzer.flows for analyzer in self.stats.analyzers.values())
        return (
            f"after {seconds:.0f} s: {counted(flows, 'flow report')},"
            f" {counted(self.stats.scrape.scrapes, 'scrape')},"
            f" {counted(self._parts.table.connections, 'connection')}"
        )

    async def reload(self) -> str | None:
        """Reload the configuration. Return the error message, or None if there was no error.

        An invalid configuration changes nothing. If the export selection (such as labels and
        metrics) has changed, all connections are removed from the table.
        """
        async with self._reloading:
            self._manager.reloading()
            problem = await self._reload()
            self._manager.reloaded(problem)
            return problem

    async def _reload(self) -> str | None:
        stats, old = self.stats.config, self._parts.config
        try:
            await self._configure(await asyncio.to_thread(self._load))
        except ConfigError as error:
            problem = str(error)
            reason = "web_configuration" if isinstance(error, _WebConfigError) else "configuration"
            logs.write_notes(Note(level=logging.WARNING, text=text) for text in error.warnings)
            log.error("configuration not reloaded: %s", problem)
        except Exception as error:
            problem, reason = f"internal error ({type(error).__name__})", "error"
            log.exception("configuration not reloaded: internal error")
        else:
            stats.reloads += 1
            stats.last_reload_successful = 1
            stats.last_reload_success_timestamp_s = time.time()
            stats.last_reload_changed = changed(old, self._parts.config)
            keys = ", ".join(stats.last_reload_changed) or "nothing"
            log.info("configuration reloaded; changed: %s", keys)
            return None
        stats.last_reload_successful = 0
        stats.last_failure = Failure(reason, problem)
        stats.failures[reason] += 1
        return problem

    def _reload_by_web(self, config: Config) -> ReloadFunction | None:
        return self.reload if config.web.enable_reload else None

    async def _configure(self, config: Config) -> None:
        """Apply ``config``. If a file is unusable, raise ConfigError and change nothing."""
        old = self._parts
        subscriptions = await asyncio.to_thread(self.subscriptions.prepare, config)
        new = await asyncio.to_thread(pipeline.build, config, old, self._shared)
        try:
            web_config = await asyncio.to_thread(self._security.read) if self._security else None
        except ConfigError as error:
            raise _WebConfigError(*error.problems) from None
        self._replace_poller(new.poller)
        await new.wait_for_names()
        # The following statements cannot fail, and no other task runs between them.
        logs.configure(config.logging)
        logs.write_notes(config.notes)
        self._parts = new
        new.take_over(old, self._shared)
        self._names_file.use(new.own, config.export)
        self.exposition.source = new.source
        self.status.use(new.status_source)
        self.web.configure(config.web, reload=self._reload_by_web(config))
        if self._security and web_config:
            self._security.use(web_config)
        self.subscriptions.configure(subscriptions)
        if new.table is old.table:
            self._rename_own(old.own.own, new.own.own)
        else:
            changes = ", ".join(changed_fields(old.config.export, config.export))
            log.warning("all connections removed from the table: %s changed", changes)
        if self._served_at and listen.configured(config) != self._served_at:
            log.warning("changes to listen_address and port require a restart")
        _log_new_analyzers(config, known=old.config.subscriber.endpoints)
        traffic_warnings.write(config, old=old.config)

    async def _subscribe(self) -> None:
        await self._parts.wait_for_names()
        await self.subscriptions.run()

    async def _poll(self) -> None:
        """Poll the topology; a reload replaces the poller."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._polling = tasks.create_task(self._poll_until_cancelled(self._poller))
                await asyncio.wait([self._polling])

    async def _poll_until_cancelled(self, poller: TopologyPoller) -> None:
        await poller.run()
        await asyncio.Event().wait()  # nothing to poll: wait until cancelled

    def _replace_poller(self, poller: TopologyPoller) -> None:
        self._poller = poller
        if self._polling is not None:
            self._polling.cancel()

    def _rename(self, names: Names, keys: Set[str]) -> None:
        """Schedule the relabeling of flows, because the names of ``keys`` have changed.

        The ``keys`` are addresses or capture points (``NodeTID``). ``names`` maps each key to its
        new names.
        """
        self._renamed.append((names, keys))
        self._has_renamed.set()

    async def _relabel(self) -> None:
        while True:
            await self._has_renamed.wait()
            self._has_renamed.clear()
            while self._renamed or self._renamed_own:
                if self._renamed:
                    await self._move_flows(*self._renamed.popleft())
                else:
                    await self._relabel_own(*self._renamed_own.popleft())

    async def _move_flows(self, names: Names, keys: Set[str]) -> None:
        """Move the flows that contain one of ``keys`` to connections with the new names.

        Each step moves a limited number of flows, so that other tasks can run between two steps.
        """
        table, are_left = self._parts.table, True
        relabeling = table.relabel(names, keys)
        # Stop if a reload replaces the table: the new table has no outdated names.
        while are_left and table is self._parts.table:
            try:
                are_left = relabeling.step(RELABEL_FLOWS, wall_ms=time.time_ns() // 1_000_000)
            except MemoryError:
                await self._wait_for_memory()
            await asyncio.sleep(0)

    async def _wait_for_memory(self) -> None:
        self._limit.warn(log, "relabel", "out of memory: names in labels are out of date")
        await asyncio.sleep(RELABEL_RETRY_S)

    async def _watch_names(self) -> None:
        """Reload own names (names given by users) when ``names_file`` changes."""
        while True:
            await asyncio.sleep(names_file.INTERVAL_S)
            async with self._reloading:
                old = self._parts
                export = old.config.export
                own = await self._names_file.refresh(old.own, export)
                if own is not None:
                    self._parts = dataclasses.replace(old, own=own)
                    old.names.use_own(own.own, export)
                    self._rename_own(old.own.own, own.own)

    def _rename_own(self, old: OwnNames, new: OwnNames) -> None:
        """Schedule the relabeling of flows, because own names (given by users) have changed."""
        if new is not old:
            self._renamed_own.append((old, new))
            self._has_renamed.set()

    async def _relabel_own(self, old: OwnNames, new: OwnNames) -> None:
        """Relabel flows after own names have changed from ``old`` to ``new``.

        Each step checks a limited number of strings of the table.
        """
        table, names = self._parts.table, self._parts.names.combined
        first = 1
        while first:
            try:
                texts, following = table.strings(first, COMPARED_STRINGS)
                keys = await asyncio.to_thread(changed_addresses, texts, old, new)
            except MemoryError:
                await self._wait_for_memory()
                continue
            first = following
            if keys:
                await self._move_flows(names, keys)
        await asyncio.to_thread(old.release)

    def _update_hold(self) -> None:
        """Stop the table's clock while reports may be missing, so that no connection expires."""
        if all(analyzer.up for analyzer in self.stats.analyzers.values()):
            self._all_up.set()
        # In a replay, the timeout is 0, and the clock is never stopped.
        if self._parts.config.subscriber.silence_timeout_s:
            self.clock.hold(
                self._gap.update(
                    self.clock.running(),
                    delivering=self.subscriptions.delivering,
                    subscribed=self.subscriptions.subscribed,
                    flow_update_s=self.stats.flow_update_s,
                )
            )

    def _look_for_gaps(self) -> None:
        """Stop or restart the table's clock, and log each change."""
        self._update_hold()
        self._warn_of_updates()
        stats, held = self.stats, self.clock.held
        stats.clock_held_s = self.clock.held_s
        if held and not stats.clock_held:
            log.info(
                "expiry of connections paused: reports may be missing from %s",
                self._missing_analyzers(),
            )
        elif stats.clock_held and not held:
            log.info("expiry of connections resumed")
        stats.clock_held = int(held)

    def _missing_analyzers(self) -> str:
        causes, subscriptions = self._gap.causes, self.subscriptions
        texts = [f"{name} ({subscriptions.state(name)})" for name in causes[:MAX_ANNOUNCED]]
        more = len(causes) - MAX_ANNOUNCED
        return ", ".join(texts) + (f" and {more} more" if more > 0 else "")

    async def _expire(self) -> None:
        """Expire flows and connections in short steps. Other tasks can run between two steps."""
        paused_s = 0.0
        while True:
            self._look_for_gaps()
            now = self.clock.now()
            if self.clock.paused_s > paused_s:
                log.warning(
                    "process paused for %.0f s; all deadlines are postponed by the same amount",
                    self.clock.paused_s - paused_s,
                )
                paused_s = self.clock.paused_s
            slice_ends = time.monotonic() + EXPIRY_SLICE_S
            while self._parts.table.expire(now, EXPIRY_ROWS):
                if time.monotonic() > slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = time.monotonic() + EXPIRY_SLICE_S
            self._count_from_now(now)
            self._parts.checker.tick()
            self._parts.interfaces.expire(now)
            self._parts.captures.expire(now)
            await asyncio.sleep(EXPIRY_INTERVAL_S)

    def _count_from_now(self, now: float) -> None:
        """When the first subscription comes up, set `Table.horizon_s` to ``now``.

        If a flow begins after this time, the table knows that it has never counted the flow before.
        """
        if self._parts.table.horizon_s is None and self.subscriptions.any_up:
            self._parts.table.raise_horizon(now)

    def _warn_of_updates(self) -> None:
        """Warn if the timeout is so short that connections expire between two reports of a flow.

        The warning is logged once for each combination of timeout and ``flow.update``.
        """
        update_s = round(self.stats.flow_update_s)  # the estimate is not exact
        timeout_s = self._parts.config.limits.timeout_s
        if not self.stats.flow_update_known or self._warned == (update_s, timeout_s):
            return
        self._warned = (update_s, timeout_s)
        if timeout_s < update_s + SLACK_S:
            log.warning(
                "connection_timeout plus connection_grace is %s s, but must be at least flow.update"
                " (%s s) plus %s s for delayed reports: otherwise, connections expire between two"
                " reports of a flow",
                f"{timeout_s:g}",
                update_s,
                f"{SLACK_S:g}",
            )

    async def _check_labels(self) -> None:
        """Search regularly for labels that should show names, but are empty for most traffic."""
        check, took_s = EmptyLabelCheck(), 0.0
        while True:
            await asyncio.sleep(max(empty_labels.INTERVAL_S, took_s / empty_labels.MAX_LOAD))
            took_s = await self._find_empty_labels(check)

    async def _find_empty_labels(self, check: EmptyLabelCheck) -> float:
        """If a search is due, search the table. Return the duration of the search in seconds.

        The search is not in the loop of `_check_labels`: there, local variables would keep a
        replaced table in memory until the next search.
        """
        parts, names = self._parts, self.stats.topology.names
        if names is None or not check.is_due(parts.ranking, is_read=names.is_read):
            return 0.0
        began_s = time.monotonic()
        views = tuple(parts.ranking.views.values())
        try:
            found = await asyncio.to_thread(
                empty_labels.find, parts.table, views, min_share=empty_labels.MIN_SHARE
            )
        except MemoryError:
            found = []
        if parts.table is self._parts.table:
            check.use(found, names)
        return time.monotonic() - began_s

    async def _warn_when_full(self) -> None:
        """Log how many reports a full table has skipped since this function last logged a message.

        It logs at most one message per `FULL_INTERVAL_S`.
        """
        table, known, known_connections = self._parts.table, 0, 0
        while True:
            if self._parts.table is not table:
                table, known, known_connections = self._parts.table, 0, 0
            full, connections = table.skipped["table_full"], table.rejected_total
            interval_s = EXPIRY_INTERVAL_S
            if full > known:
                limits = self._parts.config.limits
                log.warning(
                    "table full: skipped %d reports of new connections beyond max_connections (%d)"
                    " and %d reports of new flows beyond max_flows (%d)",
                    connections - known_connections,
                    limits.max_connections,
                    full - known - (connections - known_connections),
                    limits.max_flows,
                )
                known, known_connections, interval_s = full, connections, FULL_INTERVAL_S
            await asyncio.sleep(interval_s)


def _log_new_analyzers(config: Config, *, known: Sequence[Endpoint] = ()) -> None:
    endpoints = config.subscriber.endpoints
    new = [endpoint.alias or str(endpoint) for endpoint in endpoints if endpoint not in known]
    if new:
        others = f" and {len(new) - MAX_ANNOUNCED} more" if len(new) > MAX_ANNOUNCED else ""
        shown = ", ".join(new[:MAX_ANNOUNCED])
        if uses_default_analyzer(config):
            log.info("no analyzers are configured; using the default")
        log.info("subscribing to %s%s with host_id %s", shown, others, config.host_id)


def _cost_summary(parts: Parts) -> str:
    export, limits = parts.config.export, parts.config.limits
    row_bytes = parts.table.row_bytes
    series = [cost.series(view, naming=export.naming) for view in export.views]
    maximum = {"max_connections": limits.max_connections, "max_flows": limits.max_flows}
    most = cost.most_connections(**maximum)
    return (
        f"each connection costs up to {series[0]} series and {row_bytes} bytes"
        f" (plus address strings), and expires {limits.timeout_s:g} s after its last report;"
        f" limits: {most} connections ({most * row_bytes >> 20} MiB) and {limits.max_flows} flows;"
        f" at most {cost.most_series(series, **maximum)} series, including views"
    )


def _is_secure(security: "WebSecurity | None") -> bool:
    return security is not None and security.config.tls is not None
