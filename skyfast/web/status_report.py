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
    """The subscription to an analyzer.

    ``share`` is this analyzer's fraction of the ``flows_per_second`` of all analyzers.
    ``lag_seconds`` and ``data_age_seconds`` are means over ten minutes. ``lost_ratio`` is the
    fraction of the checked reports whose previous report was lost.
    """

    name: str
    up: bool
    since_timestamp_seconds: float
    flows_per_second: float
    share: float | None
    lag_seconds: float | None
    data_age_seconds: float | None
    reports_checked_total: int
    reports_lost_total: int
    lost_ratio: float | None
    flows_total: int
    messages_total: int
    reconnects_total: int
    last_message_timestamp_seconds: float | None
    last_error: LastError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """``skipped_total`` maps reasons to numbers of skipped reports.

    ``skipped_expected_total`` has the reasons in `EXPECTED_SKIPS`, and ``skipped_unexpected_total``
    has all other reasons. Reports dropped by filter rules are only in ``filtered_total``.
    ``series_at_most`` and ``series_limit`` are sums over all views. ``reports_lost_total`` counts
    checked reports whose previous report was lost. ``hidden_connections`` is the number of
    connections that have reached neither ``min_bytes`` nor ``min_packets``, or None without these
    bounds.
    """

    connections: int
    hidden_connections: int | None
    connections_limit: int
    flows: int
    flows_limit: int
    dormant_flows: int
    series_at_most: int
    series_limit: int
    bytes: int
    created_total: int
    expired_total: int
    rejected_total: int
    overflowed_total: int
    skipped_total: dict[str, int]
    skipped_expected_total: dict[str, int]
    skipped_unexpected_total: dict[str, int]
    filtered_total: int
    reports_checked_total: int
    reports_lost_total: int
    lost_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusCost:
    """What the series cost in a Prometheus server that scrapes all of them.

    ``created_…`` and ``expired_…`` are the series of the connections that were created or expired
    in the last ``window_seconds`` (at most three hours). The memory is an estimate for the current
    and the expired series: see `SERIES_BYTES`.
    """

    series_at_most: int
    created_series_at_most: int
    expired_series_at_most: int
    window_seconds: float
    memory_bytes_low: int
    memory_bytes_high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayStatus:
    demo: bool
    recordings: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrapes:
    """Counters of metrics pages.

    ``total`` and ``last_…`` cover pages with flows that were served completely; ``last_…`` is None
    before the first such page. ``rejected_total`` and ``failed_total`` cover all metrics pages
    except ``/metrics/self``.
    """

    total: int
    rejected_total: int
    failed_total: int
    last_duration_seconds: float | None
    last_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStatus:
    """``owner`` is the pod, the container or the network namespace that has the interface.

    ``owner`` is empty if the host has the interface, or if the owner is unknown.
    """

    labels: dict[str, str]
    owner: str
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
    """``file`` is None if ``names_file`` is not set."""

    entries: int
    keys: Sequence[str]
    file: str | None
    last_load_successful: bool
    last_load_success_timestamp_seconds: float
    last_error: LastError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePointStatus:
    """An interface on which a capture runs; ``name`` is empty if it is unknown."""

    node_tid: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureStatus:
    """The capture ``points`` come from a sample of flows."""

    capture_id: str
    points: list[CapturePointStatus]
    packets_received: float
    packets_dropped: float
    kernel_flows_dropped: int
    flows: int
    flows_dropped: int
    reports: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturesStatus:
    """The number of captures, and the first captures in the order of their IDs."""

    count: int
    first: Sequence[CaptureStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewStatus:
    """``labels`` does not contain ``direction``, and ``metrics`` contains no histograms."""

    prefix: str
    labels: Sequence[str]
    metrics: Sequence[RankedMetric]
    rankings: list[str]
    min_bytes: int
    min_packets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """Before the first reload, the fields describe the start of skyfast.

    ``successes_total`` does not count the start. ``last_error`` is from the latest failed reload.
    """

    successful: bool
    successes_total: int
    last_success_timestamp_seconds: float
    changed: Sequence[str]
    last_error: LastError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """The status, without the busiest connections. ``warnings`` are the texts of ``notices``.

    ``labels``, ``metrics`` and ``rankings`` are those of the first view.
    """

    version: str
    python: str
    host_id: str
    ready: bool
    health: Health
    replay: ReplayStatus | None
    warnings: list[str]
    notices: list[Notice]
    timestamp_seconds: float
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
    metrics: Sequence[RankedMetric]
    rankings: list[str]
    views: list[ViewStatus]
    forecast: Forecast | None
    reload: Reload
    configuration_source: str
    configuration: str
