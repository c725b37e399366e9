"""The content of ``/api/status``, as dataclasses. `skyfast.web.status` fills them.

The field names are the keys of the JSON objects: see docs/reference/api.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from skyfast.web.forecast import Forecast
from skyfast.web.history import Series
from skyfast.web.notices import Notice
from skyfast.web.ranked_views import RankedMetric


@dataclass(frozen=True, slots=True, kw_only=True)
class LastError:
    """The last error of a subscription, of topology queries, or of a reload."""

    reason: str
    text: str
    timestamp_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    state: Literal["ready", "degraded", "not ready"]
    text: str
    analyzers: int
    analyzers_up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Analyzer:
    """The subscription to an analyzer."""

    name: str
    up: bool
    since_timestamp_seconds: float
    """The time when ``up`` last changed."""
    flows_per_second: float
    share: float | None
    """The fraction of the ``flows_per_second`` of all analyzers; None if this sum is 0."""
    lag_seconds: float | None
    """The mean time from an agent's update of a flow's counters to the arrival of the report.

    The mean is over ten minutes. None if no report was observed."""
    data_age_seconds: float | None
    """The mean time from a flow's latest packet to the arrival of the report.

    The mean is over ten minutes. None if no report was observed."""
    reports_checked_total: int
    reports_lost_total: int
    """Number of checks that found that the flow's previous report was lost."""
    lost_ratio: float | None
    """The fraction of checks that found a lost report; None without checks."""
    flows_total: int
    messages_total: int
    reconnects_total: int
    last_message_timestamp_seconds: float | None
    last_error: LastError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """The state of the table, and the counters of flow reports."""

    connections: int
    hidden_connections: int | None
    """Number of connections that have reached neither ``min_bytes`` nor ``min_packets``.

    None if the configuration sets neither of these bounds."""
    connections_limit: int
    flows: int
    flows_limit: int
    dormant_flows: int
    series_at_most: int
    """Upper bound on the number of series of all views together."""
    series_limit: int
    """Number of series of all views together if all views are full."""
    bytes: int
    """Memory of the table."""
    created_total: int
    """Number of connections created."""
    expired_total: int
    """Number of connections expired."""
    rejected_total: int
    """Number of reports for which the table had no space, including ``overflowed_total``."""
    overflowed_total: int
    """Number of reports added to the overflow connection because the table was full."""
    skipped_total: dict[str, int]
    """Numbers of skipped reports by reason. Reports dropped by filter rules are not included."""
    skipped_expected_total: dict[str, int]
    """The items of ``skipped_total`` whose reasons are in `EXPECTED_SKIPS`."""
    skipped_unexpected_total: dict[str, int]
    """The items of ``skipped_total`` whose reasons are not in `EXPECTED_SKIPS`."""
    filtered_total: int
    """Number of reports dropped by filter rules."""
    reports_checked_total: int
    reports_lost_total: int
    """Number of checks that found that the flow's previous report was lost."""
    lost_ratio: float | None
    """The fraction of checks that found a lost report; None without checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusCost:
    """What the series cost in a Prometheus server that scrapes all of them."""

    series_at_most: int
    """The same as `TableStatus.series_at_most`."""
    created_series_at_most: int
    """Upper bound on the series of all connections created in the last ``window_seconds``."""
    expired_series_at_most: int
    """Upper bound on the series of all connections expired in the last ``window_seconds``."""
    window_seconds: float
    """The time over which created and expired connections are counted: at most three hours."""
    memory_bytes_low: int
    """The lowest estimate of the memory for current and expired series: see `SERIES_BYTES`."""
    memory_bytes_high: int
    """The highest estimate of the memory for current and expired series: see `SERIES_BYTES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayStatus:
    demo: bool
    recordings: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrapes:
    """Counters of metrics pages."""

    total: int
    """Number of pages ``/metrics`` and ``/metrics/flows`` that were served completely."""
    rejected_total: int
    """Number of refused requests for metrics pages. ``/metrics/self`` is not counted."""
    failed_total: int
    """Number of incompletely served metrics pages. ``/metrics/self`` is not counted."""
    last_duration_seconds: float | None
    """Duration of the latest page counted in ``total``; None before the first one."""
    last_bytes: int | None
    """Uncompressed size of the latest page counted in ``total``; None before the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStatus:
    """A network interface and its counters."""

    labels: dict[str, str]
    owner: str
    """The pod, the container or the network namespace that has the interface.

    Empty if the host has the interface, or if the owner is unknown."""
    received_bytes: int
    transmitted_bytes: int
    dropped_packets: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfacesStatus:
    """The state of topology queries, and the busiest interfaces of the last response."""

    enabled: bool
    count: int
    answers_total: int
    errors_total: int
    last_answer_timestamp_seconds: float | None
    last_error: LastError | None
    busiest: Sequence[InterfaceStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesStatus:
    addresses: int
    capture_points: int
    ambiguous: int
    unknown: int
    last_reading_timestamp_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNamesStatus:
    """The own names that ``names`` and ``names_file`` set."""

    entries: int
    keys: Sequence[str]
    """The keys that at least one entry has."""
    file: str | None
    """The path in ``names_file``, or None if ``names_file`` is not set."""
    last_load_successful: bool
    last_load_success_timestamp_seconds: float
    last_error: LastError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePointStatus:
    """An interface on which a capture runs."""

    node_tid: str
    name: str
    """The name of the interface, or "" if the name is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureStatus:
    """A capture and its statistics."""

    capture_id: str
    points: list[CapturePointStatus]
    """The interfaces on which the capture runs, as far as a sample of its flows shows them."""
    packets_received: float
    packets_dropped: float
    kernel_flows_dropped: int
    flows: int
    flows_dropped: int
    reports: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturesStatus:
    """The captures that agents report."""

    count: int
    """Number of all captures."""
    first: Sequence[CaptureStatus]
    """The first captures in the order of their IDs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewStatus:
    """A view other than the first view."""

    prefix: str
    labels: Sequence[str]
    """The names of all labels of the view except ``direction``."""
    metrics: Sequence[RankedMetric]
    """All metrics of the view except histograms."""
    rankings: list[str]
    """The names of the criteria by which the view can be ranked."""
    min_bytes: int
    min_packets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """The reloads of the configuration."""

    successful: bool
    """Whether the latest reload succeeded; true before the first reload."""
    successes_total: int
    """Number of successful reloads, not counting the start of skyfast."""
    last_success_timestamp_seconds: float
    """The time of the latest successful reload, or of the start if no reload has succeeded."""
    changed: Sequence[str]
    """The configuration keys that the latest successful reload changed."""
    last_error: LastError | None
    """The error of the latest failed reload, or None if no reload has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """The status of skyfast, without the busiest connections."""

    version: str
    python: str
    host_id: str
    ready: bool
    health: Health
    replay: ReplayStatus | None
    warnings: list[str]
    """The texts of ``notices``."""
    notices: list[Notice]
    timestamp_seconds: float
    """The time of the report."""
    uptime_seconds: float
    resident_bytes: int | None
    flows_per_second: float
    analyzers: list[Analyzer]
    table: TableStatus
    prometheus: PrometheusCost
    scrapes: Scrapes
    interfaces: InterfacesStatus
    names: NamesStatus | None
    own_names: OwnNamesStatus | None
    captures: CapturesStatus
    history: Series
    labels: Sequence[str]
    """The names of all labels of the first view except ``direction``."""
    metrics: Sequence[RankedMetric]
    """All metrics of the first view except histograms."""
    rankings: list[str]
    """The names of the criteria by which connections can be ranked."""
    views: list[ViewStatus]
    """All views except the first view."""
    forecast: Forecast | None
    reload: Reload
    configuration_source: str
    configuration: str
