"""The content of the status page and of ``/api/status``.

`Status` must be used on the event loop.
"""

import asyncio
import operator
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, Protocol

import msgspec

from skyfast import __version__
from skyfast.config import loader
from skyfast.config.cost import most_series
from skyfast.config.model import Config
from skyfast.runtime import process
from skyfast.runtime.logs import printable
from skyfast.skydive.capture_points import CapturePoints
from skyfast.skydive.captures import CaptureReport
from skyfast.skydive.interfaces import Interface
from skyfast.skydive.known_names import KnownNames
from skyfast.stats import AnalyzerStats, Failure, NameStats, OwnNameStats, Stats, TableCounts, sums
from skyfast.web.forecast import Forecast, Forecaster
from skyfast.web.history import INTERVAL_S, Churn, History
from skyfast.web.notices import current_notices
from skyfast.web.status_report import (
    Analyzer,
    CapturePointStatus,
    CapturesStatus,
    CaptureStatus,
    Health,
    InterfacesStatus,
    InterfaceStatus,
    LastError,
    NamesStatus,
    OwnNamesStatus,
    PrometheusCost,
    Reload,
    ReplayStatus,
    Scrapes,
    StatusReport,
    TableStatus,
    ViewStatus,
)
from skyfast.web.top import Ranking
from skyfast.wording import noun

MAX_ANALYZERS: Final = 200
"""The maximum number of analyzers that a report lists."""

EXPECTED_SKIPS: Final = frozenset(
    {"late", "ended", "no_network", "no_transport", "excluded", "duplicate", "other_shard"}
)
"""The reasons for which reports are skipped in normal operation, without a loss of data."""

SERIES_BYTES: Final = (2_500, 7_000)
"""The lowest and highest estimate of the memory per series in Prometheus: see docs/scaling.md."""

MAX_CAPTURES: Final = 50
"""The maximum number of captures that a report lists."""


class InterfaceSource(Protocol):
    def busiest(self, now: float) -> Sequence[Interface]: ...


class CaptureSource(Protocol):
    def first(self, count: int, now: float) -> Sequence[CaptureReport]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSource:
    """What a status report reads, besides `Stats`."""

    config: Config
    table: TableCounts
    series: Sequence[int]
    """The maximum number of series of a row, for each view in the table's order."""
    ranking: Ranking
    interfaces: InterfaceSource
    captures: CaptureSource
    capture_points: CapturePoints
    names: KnownNames
    forecaster: Forecaster | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The recordings that replace the analyzers."""

    is_demo: bool
    recordings: tuple[str, ...]


class Status:
    """Creates status reports."""

    def __init__(
        self,
        *,
        source: StatusSource,
        stats: Stats,
        ready: Callable[[], bool],
        now: Callable[[], float],
        replay: Replay | None = None,
    ) -> None:
        """``now`` returns the time of the table's clock in seconds."""
        self._source = source
        self._stats = stats
        self._ready = ready
        self._now = now
        self._start_s = time.monotonic()
        self._dump: tuple[Config, str] | None = None
        self._replay = replay
        self._history = History()
        self._churn = Churn()
        self.sample()

    @property
    def ranking(self) -> Ranking:
        return self._source.ranking

    def use(self, source: StatusSource) -> None:
        """Replace the source of future reports, after a reload."""
        if source.ranking is not self._source.ranking:
            self._source.ranking.close()
        if source.table is not self._source.table:
            self._churn = Churn()
        self._source = source

    def sample(self) -> None:
        table, now_s = self._source.table, time.monotonic()
        self._history.add(self._stats, table.connections, now_s=now_s)
        self._churn.add(table.created_total, table.expired_total, now_s=now_s)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.sample()

    async def report(self) -> StatusReport:
        configuration = await self._configuration()
        forecaster = self._source.forecaster
        forecast = await forecaster.get() if forecaster else None
        source, stats = self._source, self._stats
        rates = self._history.rates()
        table, scrape, now = source.table, stats.scrape, self._now()
        notices = list(current_notices(stats, table))
        # Read each counter once, so that the values are consistent.
        counts = _table(stats, table, source.series, forecast)
        ready = self._ready()
        return StatusReport(
            version=__version__,
            python=platform.python_version(),
            host_id=source.config.host_id,
            ready=ready,
            health=_health(stats, source.config, ready=ready),
            replay=(
                ReplayStatus(demo=self._replay.is_demo, recordings=self._replay.recordings)
                if self._replay
                else None
            ),
            warnings=[notice.text for notice in notices],
            notices=notices,
            timestamp_seconds=round(time.time(), 3),
            uptime_seconds=round(time.monotonic() - self._start_s, 1),
            resident_bytes=_resident_bytes(),
            flows_per_second=round(sum(rates.values(), 0.0), 1),
            analyzers=list(_analyzers(stats, rates, self._history.lags())),
            table=counts,
            prometheus=self._cost(counts, source.series[0]),
            scrapes=Scrapes(
                total=scrape.scrapes,
                rejected_total=scrape.rejected,
                failed_total=sum(scrape.failures.values()),
                last_duration_seconds=scrape.last_duration_s if scrape.scrapes else None,
                last_bytes=scrape.last_bytes if scrape.scrapes else None,
            ),
            interfaces=InterfacesStatus(
                enabled=source.config.topology.interfaces_interval_s > 0,
                count=stats.topology.interfaces,
                answers_total=stats.topology.answers,
                errors_total=sum(stats.topology.errors.values()),
                last_answer_timestamp_seconds=stats.topology.last_answer_timestamp_s or None,
                last_error=_last_error(stats.topology.last_failure),
                busiest=[
                    _interface(interface, source.names)
                    for interface in source.interfaces.busiest(now)
                ],
            ),
            names=_names(stats.topology.names),
            own_names=_own_names(stats.own_names),
            captures=CapturesStatus(
                count=stats.captures.captures,
                first=[
                    _capture(report, source, now)
                    for report in source.captures.first(MAX_CAPTURES, now)
                ],
            ),
            history=self._history.series(stats, counts.connections, now_s=time.monotonic()),
            labels=source.ranking.first_view.labels,
            metrics=source.ranking.first_view.metrics,
            rankings=list(source.ranking.first_view.keys),
            views=list(_views(source)),
            forecast=forecast,
            reload=Reload(
                successful=bool(stats.config.last_reload_successful),
                successes_total=stats.config.reloads,
                last_success_timestamp_seconds=stats.config.last_reload_success_timestamp_s,
                changed=stats.config.last_reload_changed,
                last_error=_last_error(stats.config.last_failure),
            ),
            configuration_source=printable(source.config.source),
            configuration=configuration,
        )

    def _cost(self, counts: TableStatus, series: int) -> PrometheusCost:
        """``series`` is the maximum number of series of a connection."""
        churn = self._churn.counts(
            counts.created_total, counts.expired_total, now_s=time.monotonic()
        )
        # Do not add the series of `churn.created`. They are already counted, because each created
        # connection is now either in the table or expired.
        in_memory = counts.series_at_most + churn.expired * series
        low, high = SERIES_BYTES
        return PrometheusCost(
            series_at_most=counts.series_at_most,
            created_series_at_most=churn.created * series,
            expired_series_at_most=churn.expired * series,
            window_seconds=round(churn.seconds, 1),
            memory_bytes_low=in_memory * low,
            memory_bytes_high=in_memory * high,
        )

    async def _configuration(self) -> str:
        """Return the configuration as YAML without secrets, created once and in a thread."""
        current = self._source.config
        if self._dump is None or self._dump[0] is not current:
            self._dump = current, await asyncio.to_thread(loader.dump, current)
        return self._dump[1]


def as_json(report: StatusReport) -> bytes:
    return msgspec.json.encode(report)


def _health(stats: Stats, config: Config, *, ready: bool) -> Health:
    names = {endpoint.name for endpoint in config.subscriber.endpoints if endpoint.follows_dns}
    rows = list(stats.analyzers.values())
    # While skyfast is subscribed to none of the addresses of a ``dns+`` name, the name itself
    # counts as an analyzer that is down. Otherwise, only the addresses count.
    rows = [row for row in rows if row.name not in names or not row.up]
    up = sum(row.up for row in rows)
    state: Literal["ready", "degraded", "not ready"] = "not ready"
    if ready:
        state = "ready" if up == len(rows) else "degraded"
    return Health(
        state=state,
        text=f"{up} of {len(rows)} {noun(len(rows), 'analyzer')}",
        analyzers=len(rows),
        analyzers_up=up,
    )


def _analyzers(
    stats: Stats,
    rates: Mapping[str, float],
    lags: Mapping[str, tuple[float | None, float | None]],
) -> Iterator[Analyzer]:
    total = sum(rates.values())
    # Put analyzers that are down first, because only the first `MAX_ANALYZERS` are reported.
    by_state: Iterable[AnalyzerStats] = sorted(
        stats.analyzers.values(), key=lambda analyzer: analyzer.up
    )
    for analyzer in islice(by_state, MAX_ANALYZERS):
        rate = rates.get(analyzer.name, 0.0)
        lag_s, age_s = lags.get(analyzer.name, (None, None))
        checked, lost = analyzer.reports_checked, analyzer.report_gaps["lost"]
        yield Analyzer(
            name=analyzer.name,
            up=bool(analyzer.up),
            since_timestamp_seconds=analyzer.since_timestamp_s,
            flows_per_second=round(rate, 1),
            share=round(rate / total, 4) if total else None,
            lag_seconds=lag_s,
            data_age_seconds=age_s,
            reports_checked_total=checked,
            reports_lost_total=lost,
            lost_ratio=_ratio(lost, checked),
            flows_total=analyzer.flows,
            messages_total=sum(analyzer.messages.values()),
            reconnects_total=sum(analyzer.reconnects.values()),
            last_message_timestamp_seconds=analyzer.last_message_timestamp_s or None,
            last_error=_last_error(analyzer.last_failure),
        )


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _last_error(failure: Failure | None) -> LastError | None:
    if failure is None:
        return None
    return LastError(
        reason=failure.reason, text=failure.text, timestamp_seconds=failure.timestamp_s
    )


def _names(stats: NameStats | None) -> NamesStatus | None:
    if stats is None:
        return None
    return NamesStatus(
        addresses=stats.addresses,
        capture_points=stats.nodes,
        ambiguous=stats.ambiguous,
        unknown=stats.unknown,
        last_reading_timestamp_seconds=stats.last_reading_timestamp_s or None,
    )


def _own_names(stats: OwnNameStats | None) -> OwnNamesStatus | None:
    if stats is None:
        return None
    return OwnNamesStatus(
        entries=stats.entries,
        keys=stats.keys,
        file=printable(stats.file) if stats.file else None,
        last_load_successful=bool(stats.last_load_successful),
        last_load_success_timestamp_seconds=stats.last_load_success_timestamp_s,
        last_error=_last_error(stats.last_failure),
    )


def _views(source: StatusSource) -> Iterator[ViewStatus]:
    for view in source.ranking.views.values():
        if view.prefix:
            bounds = source.config.limits.bounds[view.index]
            yield ViewStatus(
                prefix=view.prefix,
                labels=view.labels,
                metrics=view.metrics,
                rankings=list(view.keys),
                min_bytes=bounds.min_bytes,
                min_packets=bounds.min_packets,
            )


def _interface(interface: Interface, names: KnownNames) -> InterfaceStatus:
    return InterfaceStatus(
        labels=interface.labels,
        owner=names.of_node(interface.labels["node_tid"]).owner,
        received_bytes=interface.received_bytes,
        transmitted_bytes=interface.transmitted_bytes,
        dropped_packets=interface.dropped_packets,
        errors=interface.errors,
    )


def _capture(report: CaptureReport, source: StatusSource, now: float) -> CaptureStatus:
    points = [
        CapturePointStatus(node_tid=tid, name=str(source.names.of_node(tid)))
        for tid in source.capture_points.of(report.capture_id, now)
    ]
    return CaptureStatus(
        capture_id=report.capture_id,
        points=sorted(points, key=lambda point: (not point.name, point.name, point.node_tid)),
        packets_received=report.packets_received,
        packets_dropped=report.packets_dropped,
        kernel_flows_dropped=report.kernel_flows_dropped,
        flows=report.flows,
        flows_dropped=report.flows_dropped,
        reports=report.reports,
    )


def _table(
    stats: Stats, table: TableCounts, series: Sequence[int], forecast: Forecast | None
) -> TableStatus:
    skipped = sums(stats.flows_skipped, table.skipped)
    skipped = {reason: number for reason, number in skipped.items() if number}
    analyzers = stats.analyzers.values()
    checked = sum(analyzer.reports_checked for analyzer in analyzers)
    lost = sum(analyzer.report_gaps["lost"] for analyzer in analyzers)
    connections = table.connections
    rows = (connections, *table.view_connections)
    return TableStatus(
        connections=connections,
        hidden_connections=forecast.hidden_connections if forecast else None,
        connections_limit=stats.max_connections,
        flows=table.flows,
        flows_limit=stats.max_flows,
        dormant_flows=table.dormant_flows,
        series_at_most=sum(map(operator.mul, rows, series)),
        series_limit=most_series(
            series, max_connections=stats.max_connections, max_flows=stats.max_flows
        ),
        bytes=table.bytes,
        created_total=table.created_total,
        expired_total=table.expired_total,
        rejected_total=table.skipped.get("table_full", 0),
        overflowed_total=table.overflowed_total,
        skipped_total=skipped,
        skipped_expected_total={
            reason: number for reason, number in skipped.items() if reason in EXPECTED_SKIPS
        },
        skipped_unexpected_total={
            reason: number for reason, number in skipped.items() if reason not in EXPECTED_SKIPS
        },
        filtered_total=sum(stats.flows_filtered.values()),
        reports_checked_total=checked,
        reports_lost_total=lost,
        lost_ratio=_ratio(lost, checked),
    )


def _resident_bytes() -> int | None:
    try:
        return process.memory_bytes()[1]
    except OSError:  # pragma: no cover - no descriptor is free
        return None
