"""Counters of skyfast itself, in dataclasses that other modules update.

`skyfast.web.self_metrics` exports them as metrics.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

NAMESPACES = ("flow", "stats", "other")
"""Values of the label ``namespace``. Unknown namespaces are counted as ``other``."""

MESSAGE_TYPES = ("store", "stats", "other")
"""Values of the label ``type``. Unknown types are counted as ``other``."""

MESSAGE_ERRORS = ("malformed", "not_a_message", "not_a_list", "too_big")
"""Reasons for dropping a whole message.

* ``malformed``: not valid JSON
* ``not_a_message``: valid JSON, but not a Skydive message
* ``not_a_list``: a ``store`` message whose ``Obj`` is neither a list nor null
* ``too_big``: longer than ``max_message_bytes``
"""

SKIP_REASONS = (
    "invalid",
    "no_uuid",
    "no_network",
    "no_transport",
    "no_metric",
    "out_of_range",
    "text_too_long",
    "excluded",
    "duplicate",
    "late",
    "table_full",
    "other_shard",
    "ended",
)
"""Reasons for skipping a flow report of a valid message."""

CAPTURE_SKIPS = ("invalid", "no_id", "text_too_long", "out_of_range", "too_many")
"""Reasons for skipping a report of a capture's statistics."""

MISDATED_REASONS = ("ahead", "behind")
"""A flow's times are ahead of or behind the local clock: see `skyfast.skydive.clock_skew`."""

GAP_REASONS = ("lost", "ours")
"""Reasons for a missing report.

* ``lost``: lost in transit
* ``ours``: skipped by skyfast, or sent while skyfast was not subscribed
"""

RECONNECT_REASONS = (
    "refused",
    "unauthorized",
    "forbidden",
    "conflict",
    "upgrade",
    "handshake",
    "closed",
    "timeout",
    "silent",
    "overload",
    "too_big",
    "unresolved",
    "error",
)
"""Reasons why a subscription or an attempt to subscribe ended.

* ``unauthorized``, ``forbidden``, ``conflict``, ``upgrade``: HTTP 401, 403, 409, 426
* ``handshake``: any other failure of the opening handshake
* ``timeout``: the analyzer does not respond to the handshake or to pings
* ``silent``: the analyzer responds to pings, but sends no messages or no flows
* ``overload``: the analyzer dropped the subscription, because skyfast read too slowly
"""

TOPOLOGY_ERRORS = (
    "unreachable",
    "timeout",
    "unauthorized",
    "forbidden",
    "status",
    "too_big",
    "malformed",
    "error",
)
"""Reasons for a failed topology query.

* ``unauthorized``, ``forbidden``: HTTP 401, 403
* ``status``: any other status except 200
* ``malformed``: the response is not a JSON list
* ``too_big``: the response is longer than ``topology_client.MAX_RESPONSE_BYTES``
"""

INTERFACE_SKIPS = ("invalid", "no_id", "text_too_long", "duplicate", "too_many", "out_of_range")
"""Reasons why an interface of the latest topology response is not exported.

``out_of_range`` counts values, not interfaces.
"""

NAME_SKIPS = (
    "malformed",
    "wrong_type",
    "too_long",
    "too_many",
    "deleted",
    "no_id",
    "duplicate_id",
    "duplicate_tid",
    "edge_without_node",
    "several_owners",
    "ownership_ring",
    "contradictory_pods",
    "invalid_address",
    "name_too_long",
    "node_limit",
    "edge_limit",
    "address_limit",
)
"""Reasons why a node, edge or value of the topology is not used for names.

* ``too_many``: a node or edge above the limit of one response
* ``node_limit``, ``edge_limit``, ``address_limit``: above a limit for all responses together
"""

LOOKUP_DROPS = ("ambiguous", "unknown")
"""Kinds of name lookups that are dropped because a limit is reached.

* ``ambiguous``: the lookup of an ambiguous address; if it is dropped, the names are empty
* ``unknown``: a topology query for an unknown address
"""

AGE_BOUNDS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 45, 60, 90, 120, 300, 600)
"""Upper bounds of the buckets for the ages of reports (``packet_age`` and ``delivery``).

Most agents report once per minute, and most reports arrive within seconds."""

SCRAPE_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the buckets for the duration of a scrape.

A scrape of the demo takes milliseconds, and a scrape of a huge table takes seconds."""

FLOW_UPDATE_S = 60.0
"""Skydive's default for ``flow.update``, the interval between two reports of a flow."""

SCRAPE_FAILURES = ("deadline", "disconnected", "error")
"""Reasons why a page is served incompletely: timeout, client disconnected, internal error."""

RELOAD_FAILURES = ("configuration", "web_configuration", "error")
"""Reasons for a failed reload.

``error`` is an internal error; the other reasons name the file that is wrong.
"""

HANDSHAKE_FAILURES = (
    "plain_http",
    "not_tls",
    "unsupported",
    "client_certificate",
    "rejected",
    "disconnected",
    "timeout",
    "error",
)
"""Reasons for a failed TLS handshake.

* ``unsupported``: no common TLS version, cipher suite or curve
* ``client_certificate``: the certificate is missing, not trusted or has no allowed name
* ``rejected``: the client ended the handshake with an alert, usually because it does not trust the
  server's certificate

Clients that send nothing are not counted.
"""


def _zeros(names: Sequence[str]) -> Callable[[], dict[str, int]]:
    return lambda: dict.fromkeys(names, 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure: the reason, as counted by metrics, and the text of the log message."""

    reason: str
    text: str
    timestamp_s: float = field(default_factory=time.time)


class HistogramStats:
    """Counts observed values, in seconds, by bucket.

    ``bounds`` are the inclusive upper bounds of the buckets, in increasing order. ``counts`` has
    one more entry, for values above all bounds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True, eq=False)
class AnalyzerStats:
    """The counters of one analyzer's subscription. ``name`` is the analyzer's host and port.

    ``since_timestamp_s`` is the Unix time of the latest change of ``up``.
    ``packet_age`` and ``delivery`` count ages of reports: see `skyfast.skydive.data_age`.
    """

    name: str
    up: int = 0
    since_timestamp_s: float = field(default_factory=time.time)
    last_failure: Failure | None = None
    flows: int = 0
    received_bytes: int = 0
    last_message_timestamp_s: float = 0.0
    messages: dict[tuple[str, str], int] = field(
        default_factory=lambda: {("flow", "store"): 0, ("stats", "stats"): 0}
    )
    errors: dict[str, int] = field(default_factory=_zeros(MESSAGE_ERRORS))
    reconnects: dict[str, int] = field(default_factory=_zeros(RECONNECT_REASONS))
    misdated: dict[str, int] = field(default_factory=_zeros(MISDATED_REASONS))
    reports_checked: int = 0
    report_gaps: dict[str, int] = field(default_factory=_zeros(GAP_REASONS))
    packet_age: HistogramStats = field(default_factory=lambda: HistogramStats(AGE_BOUNDS_S))
    delivery: HistogramStats = field(default_factory=lambda: HistogramStats(AGE_BOUNDS_S))

    def set_up(self, up: int) -> None:
        if up != self.up:
            self.up = up
            self.since_timestamp_s = time.time()


@dataclass(slots=True, eq=False)
class ScrapeStats:
    """The counters of the HTTP server.

    ``scrapes``, ``durations`` and ``last_…`` cover completely served pages with flows
    (``/metrics``, ``/metrics/flows``). ``last_bytes`` is the size before compression. ``rejected``
    and ``failures`` cover all metrics pages except ``/metrics/self``. ``connections_rejected``
    counts TCP connections that were closed because ``web.max_connections`` were already open.
    """

    scrapes: int = 0
    durations: HistogramStats = field(default_factory=lambda: HistogramStats(SCRAPE_BOUNDS_S))
    last_duration_s: float = 0.0
    last_bytes: int = 0
    rejected: int = 0
    failures: dict[str, int] = field(default_factory=_zeros(SCRAPE_FAILURES))
    connections_rejected: int = 0
    handshakes_failed: dict[str, int] = field(default_factory=_zeros(HANDSHAKE_FAILURES))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyLabels:
    """Labels, and the share of the bytes (0 to 1) for which all of these labels are empty."""

    labels: tuple[str, ...]
    bytes_share: float


@dataclass(slots=True, eq=False)
class NameStats:
    """Counts of names from the topology, and of the queries and lookups of these names.

    ``addresses`` and ``nodes`` are the numbers of addresses and capture points with names.
    ``ambiguous`` is the number of addresses whose names depend on the flow, excluding loopback and
    link-local addresses. ``unknown`` is the number of nameless addresses in recent flows.
    ``skipped`` describes the current topology, so it is a gauge. ``labels_without_pods`` is a text
    that lists the labels that are empty because the topology has no pods. ``missing_pod_labels``
    are keys of pod labels that no pod has. ``is_read`` means that the whole topology has been read.
    ``empty_labels`` has the labels that `skyfast.web.empty_labels` warns about.
    ``query_duration_s`` is the duration of the latest query, by kind.
    """

    addresses: int = 0
    nodes: int = 0
    ambiguous: int = 0
    unknown: int = 0
    elements: int = 0
    resolutions: int = 0
    resolution_duration_s: float = 0.0
    last_reading_timestamp_s: float = 0.0
    skipped: dict[str, int] = field(default_factory=_zeros(NAME_SKIPS))
    dropped: dict[str, int] = field(default_factory=_zeros(LOOKUP_DROPS))
    labels_without_pods: str = ""
    missing_pod_labels: tuple[str, ...] = ()
    is_read: bool = False
    empty_labels: tuple[EmptyLabels, ...] = ()
    query_duration_s: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class TopologyStats:
    """``interfaces`` and ``skipped`` describe the latest response, so they are gauges.

    ``names`` is None unless labels or info series need names.
    """

    answers: int = 0
    last_answer_timestamp_s: float = 0.0
    interfaces: int = 0
    skipped: dict[str, int] = field(default_factory=_zeros(INTERFACE_SKIPS))
    errors: dict[str, int] = field(default_factory=_zeros(TOPOLOGY_ERRORS))
    last_failure: Failure | None = None
    names: NameStats | None = None


@dataclass(slots=True, eq=False)
class OwnNameStats:
    """Counts of own names (names given by users), and the result of reading ``names_file``.

    ``keys`` are the keys that at least one entry has. ``labels_without_names`` has, as text, the
    labels that are empty because there are no own names. ``missing_keys`` are keys that labels need
    but no entry has.
    """

    entries: int = 0
    keys: tuple[str, ...] = ()
    file: str = ""
    last_load_successful: int = 1
    last_load_success_timestamp_s: float = 0.0
    last_failure: Failure | None = None
    labels_without_names: str = ""
    missing_keys: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class CaptureStats:
    captures: int = 0
    skipped: dict[str, int] = field(default_factory=_zeros(CAPTURE_SKIPS))


@dataclass(slots=True, eq=False)
class ConfigStats:
    """The result of the latest reload, or of the start if there was no reload yet.

    ``reloads`` counts successful reloads, excluding the start.
    """

    reloads: int = 0
    last_reload_successful: int = 1
    last_reload_success_timestamp_s: float = field(default_factory=time.time)
    last_reload_changed: tuple[str, ...] = ()
    last_failure: Failure | None = None
    failures: dict[str, int] = field(default_factory=_zeros(RELOAD_FAILURES))


@dataclass(slots=True, eq=False)
class Stats:
    """All counters of the process except the table's counters.

    ``flows_filtered`` counts dropped flows by filter rule. ``values_skipped`` counts skipped values
    by field, such as ``Metric.RTT``, in tables that a reload has replaced: the current table has
    its own counters. ``own_names`` is None unless there are own names or labels that show own
    names. ``clock_held`` is 1 while expiry is paused, and ``clock_held_s`` is the total time of
    these pauses.
    """

    analyzers: dict[str, AnalyzerStats] = field(default_factory=dict)
    flows_skipped: dict[str, int] = field(default_factory=_zeros(SKIP_REASONS))
    flows_filtered: dict[str, int] = field(default_factory=dict)
    values_skipped: dict[str, int] = field(default_factory=dict)
    max_connections: int = 0
    max_flows: int = 0
    flow_memory_s: float = 0.0
    clock_held: int = 0
    clock_held_s: float = 0.0
    observed_flow_update_s: float | None = None
    scrape: ScrapeStats = field(default_factory=ScrapeStats)
    topology: TopologyStats = field(default_factory=TopologyStats)
    own_names: OwnNameStats | None = None
    captures: CaptureStats = field(default_factory=CaptureStats)
    config: ConfigStats = field(default_factory=ConfigStats)

    @property
    def flow_update_s(self) -> float:
        """The agents' ``flow.update``, estimated from reports; initially `FLOW_UPDATE_S`."""
        known_s = self.observed_flow_update_s
        return FLOW_UPDATE_S if known_s is None else known_s

    @flow_update_s.setter
    def flow_update_s(self, seconds: float) -> None:
        self.observed_flow_update_s = seconds

    @property
    def flow_update_known(self) -> bool:
        """Whether ``flow_update_s`` has been estimated."""
        return self.observed_flow_update_s is not None

    def analyzer(self, name: str) -> AnalyzerStats:
        stats = self.analyzers.get(name)
        if stats is None:
            stats = self.analyzers[name] = AnalyzerStats(name)
        return stats


class TableCounts(Protocol):
    @property
    def connections(self) -> int: ...
    @property
    def flows(self) -> int: ...
    @property
    def dormant_flows(self) -> int: ...
    @property
    def dormant_connections(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def created_total(self) -> int: ...
    @property
    def expired_total(self) -> int: ...
    @property
    def rejected_total(self) -> int: ...
    @property
    def overflowed_total(self) -> int: ...
    @property
    def view_connections(self) -> tuple[int, ...]: ...
    @property
    def view_rejected_totals(self) -> tuple[int, ...]: ...
    @property
    def skipped(self) -> Mapping[str, int]: ...
    @property
    def values_skipped(self) -> Mapping[str, int]: ...
    @property
    def finished(self) -> Mapping[str, int]: ...


def sums(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in {**first, **second}}
