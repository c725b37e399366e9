"""Builds the objects that a configuration needs, and decides which of them survive a reload."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import msgspec

from skyfast._table import Table
from skyfast.config.model import Config, TableLimits
from skyfast.config.names import LoadedNames
from skyfast.config.names import load as load_names
from skyfast.flows import filters
from skyfast.flows.fields import FlowTypes, flow_types
from skyfast.flows.plan import Names, Plan
from skyfast.flows.planner import make_plan
from skyfast.runtime.clock import Clock
from skyfast.skydive import name_poller
from skyfast.skydive.capture_points import CapturePoints
from skyfast.skydive.captures import Captures
from skyfast.skydive.ingest import Ingest
from skyfast.skydive.interfaces import Interfaces
from skyfast.skydive.known_names import KnownNames
from skyfast.skydive.name_index import NameIndex
from skyfast.skydive.report_checks import ReportChecker
from skyfast.skydive.silence import Activity
from skyfast.skydive.topology import TopologyPoller
from skyfast.skydive.topology_client import Observer
from skyfast.skydive.topology_queries import Query
from skyfast.stats import Stats
from skyfast.web.cardinality import Cardinality
from skyfast.web.exposition import ExpositionSource
from skyfast.web.forecast import Forecaster
from skyfast.web.interface_info import InterfaceInfo
from skyfast.web.status import StatusSource
from skyfast.web.top import Ranking

NAMES_WAIT_S = 5.0
"""Maximum time that subscriptions wait for the first topology response, if labels need names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """State of the process that survives every reload."""

    stats: Stats
    clock: Clock
    activity: Activity
    relabel: Callable[[Names, Set[str]], None]
    """Called when names from the topology have changed."""
    observe_topology: Callable[[Query], Observer] | None = None
    """Called with each topology query. Returns an observer that gets a copy of the response."""
    wall_clock: Callable[[], float] = time.time
    """Returns Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The objects that one configuration needs.

    A reload creates new `Parts`, which reuse some of the old objects.
    """

    config: Config
    own: LoadedNames
    names: NameIndex
    plan: Plan
    types: FlowTypes
    table: Table
    filtered: dict[str, int]
    """Number of dropped flows by filter rule."""
    captures: Captures
    capture_points: CapturePoints
    interfaces: Interfaces
    poller: TopologyPoller
    checker: ReportChecker
    ingest: Ingest
    source: ExpositionSource
    ranking: Ranking
    status_source: StatusSource

    def take_over(self, old: "Parts", shared: Shared) -> None:
        """Configure the objects reused from ``old``, and carry over the counts of ``old``."""
        stats, config = shared.stats, self.config
        self.table.set_flow_types(self.types)
        self.table.set_limits(**_table_limits(config.limits))
        self.table.flow_update_s = stats.flow_update_s
        if _counts_other_flows(old.config, config) and self.table.horizon_s is not None:
            self.table.raise_horizon(shared.clock.now())
        self.interfaces.set_lifetime(**_interface_times(config))
        self.names.set_keep_time(_names_keep_s(config))
        self.names.use_own(self.own.own, config.export)
        if not name_poller.needed(config):
            self.names.forget_topology()
        for rule in self.filtered.keys() & old.filtered.keys():
            self.filtered[rule] = old.filtered[rule]
        self.record_limits(stats)
        if self.table is not old.table:
            self.names.stats.empty_labels = ()
            # Exported counters must not decrease. The new table counts from zero, so pages add the
            # counts of the old table.
            for reason, count in old.table.skipped.items():
                stats.flows_skipped[reason] += count
            for field, count in old.table.values_skipped.items():
                stats.values_skipped[field] = stats.values_skipped.get(field, 0) + count

    def record_limits(self, stats: Stats) -> None:
        stats.flows_filtered = self.filtered
        stats.max_connections = self.config.limits.max_connections
        stats.max_flows = self.config.limits.max_flows
        stats.flow_memory_s = self.config.limits.flow_memory_s
        needs_names = bool(name_poller.needed(self.config))
        stats.topology.names = self.names.stats if needs_names else None

    async def wait_for_names(self) -> None:
        """Wait up to `NAMES_WAIT_S` for the first topology response, if names are needed.

        Without the wait, the first flows would be exported without names. When the names arrived,
        the flows would move to other series.
        """
        if name_poller.needed(self.config):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NAMES_WAIT_S):
                    await self.names.ready.wait()


class _CaptureReports:
    """Forwards the agents' capture statistics to `Activity`, and to `Captures` if not None.

    Only the first shard passes `Captures`, so that each capture is exported once.
    """

    def __init__(self, *, activity: Activity, captures: Captures | None, clock: Clock) -> None:
        self._activity = activity
        self._captures = captures
        self._clock = clock

    def message(self, raw: msgspec.Raw, now: float) -> None:
        running = self._clock.running()
        self._activity.message(raw, running)
        if self._captures:
            self._captures.message(raw, now, running)


def build(config: Config, old: Parts | None, shared: Shared) -> Parts:
    """Return the parts for ``config``. Reuse parts of ``old`` if possible, without changing them.

    This blocks, because it reads certificates and ``names_file``. Raises ConfigError if a file
    cannot be used.
    """
    export, stats, clock = config.export, shared.stats, shared.clock
    wanted = name_poller.needed(config)
    own = load_names(config.names, export, known=old.own if old else None)
    same_export = old if old and old.config.export == export else None
    names = (
        old.names
        if old and _has_same_names(old.config, config)
        else NameIndex.of(export, keep_s=_names_keep_s(config), own=own.own)
    )
    plan = same_export.plan if same_export else make_plan(export, names=names, shard=config.shard)
    types = flow_types(plan, also=filters.reads(config.filter))
    table = same_export.table if same_export else Table(plan, types, **_table_limits(config.limits))
    same_names = old if old and old.config.export.naming == export.naming else None
    captures = (
        same_names.captures if same_names else Captures(naming=export.naming, stats=stats.captures)
    )
    capture_points = old.capture_points if old else CapturePoints()
    interfaces = (
        same_names.interfaces
        if same_names and config.topology.interfaces_interval_s
        else Interfaces(naming=export.naming, stats=stats.topology, **_interface_times(config))
    )
    poller = TopologyPoller(
        config=config,
        interfaces=interfaces,
        now=clock.now,
        stats=stats.topology,
        names=names if wanted else None,
        wanted=wanted,
        renamed=shared.relabel,
        observe=shared.observe_topology,
    )
    known_names = KnownNames(
        index=names if wanted or own.sources.are_set else None, interfaces=interfaces
    )
    ranking = (
        same_export.ranking
        if same_export and same_export.ranking.names == known_names
        else Ranking(
            table=table,
            view=plan.views[0],
            metrics=[metric.name for metric in export.first_view.metrics],
            others={
                view.prefix: (planned, [metric.name for metric in view.metrics])
                for view, planned in zip(export.further_views, plan.views[1:], strict=True)
            },
            names=known_names,
            flow_update_s=lambda: stats.flow_update_s,
        )
    )
    checker = (
        same_export.checker
        if same_export
        else ReportChecker(
            plan=plan,
            table=table,
            stats=stats,
            now=clock.now,
            running=clock.running,
            held_s=lambda: clock.held_s,
        )
    )
    filtered: dict[str, int] = {}
    flow_filter = filters.make_flow_filter(
        config.filter,
        filters.classifier(config.classify.cluster_net_masks),
        requirements=plan.requirements,
        skipped=stats.flows_skipped,
        filtered=filtered,
    )
    forecaster = (
        Forecaster(table, config.limits.bounds, max_series=config.max_series, now=clock.now)
        if plan.views[0].bytes
        else None
    )
    return Parts(
        config=config,
        own=own,
        names=names,
        plan=plan,
        types=types,
        table=table,
        filtered=filtered,
        captures=captures,
        capture_points=capture_points,
        interfaces=interfaces,
        poller=poller,
        checker=checker,
        ingest=Ingest(
            types=types,
            table=table,
            flow_filter=flow_filter,
            checker=checker,
            captures=_CaptureReports(
                activity=shared.activity,
                captures=None if config.shard.index else captures,
                clock=clock,
            ),
            stats=stats,
            now=clock.now,
            capture_points=None if config.shard.index else capture_points,
            wall_clock=shared.wall_clock,
        ),
        source=ExpositionSource(
            table=table,
            cardinality=Cardinality(
                table=table,
                view=plan.views[0],
                forecaster=forecaster,
                others={
                    view.prefix: planned
                    for view, planned in zip(export.further_views, plan.views[1:], strict=True)
                },
            ),
            views=tuple(view.prefix for view in export.further_views),
            table_families=tuple(family.name for view in plan.views for family in view.families),
            interface_info=(
                InterfaceInfo(names.nodes, naming=export.naming)
                if config.topology.interface_info
                else None
            ),
            interfaces=interfaces,
            captures=captures,
            standard_names=export.naming == "standard",
            start_timestamps=config.web.start_timestamps,
        ),
        ranking=ranking,
        status_source=StatusSource(
            config=config,
            table=table,
            series=tuple(sum(family.series for family in view.families) for view in plan.views),
            ranking=ranking,
            interfaces=interfaces,
            captures=captures,
            capture_points=capture_points,
            names=known_names,
            forecaster=forecaster,
        ),
    )


def _has_same_names(old: Config, new: Config) -> bool:
    """Return whether the name index of ``old`` has all names that the labels of ``new`` need.

    If the export selections are equal, the result is True, because the table of ``old`` stays in
    use and continues to look up names in this index. Info series that ``new`` adds may then lack
    names until the next topology responses arrive.
    """
    if old.export == new.export:
        return True
    polled, wanted = name_poller.needed(old), name_poller.needed(new)
    return (
        bool(wanted)
        and {*wanted} <= {*polled}
        and old.export.k8s_labels == new.export.k8s_labels
        and old.export.names_keys == new.export.names_keys
    )


def _table_limits(limits: TableLimits) -> dict[str, Any]:
    return {
        "max_connections": limits.max_connections,
        "max_flows": limits.max_flows,
        "timeout_s": limits.timeout_s,
        "memory_s": limits.flow_memory_s,
        "view_timeouts_s": limits.view_timeouts_s,
        "bounds": limits.bounds,
    }


def _interface_times(config: Config) -> dict[str, float]:
    return {
        "interval_s": config.topology.interfaces_interval_s,
        "connection_timeout_s": config.limits.connection_timeout_s,
    }


def _names_keep_s(config: Config) -> float:
    """Return how long to keep names that the topology no longer contains.

    A name must not disappear before the rows that show it.
    """
    limits = config.limits
    interval_s = config.topology.interfaces_interval_s or name_poller.INTERVAL_S
    return max(limits.timeout_s, *limits.view_timeouts_s, 3 * interval_s)


def _counts_other_flows(old: Config, new: Config) -> bool:
    """Return whether ``new`` may count flows that ``old`` dropped."""
    return (old.filter, old.classify, old.subscriber.capture_id) != (
        new.filter,
        new.classify,
        new.subscriber.capture_id,
    )
