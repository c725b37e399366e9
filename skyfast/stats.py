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
"""Whether a flow's times are ahead of or behind the local clock: see `skyfast.skydive.clock_skew`.
"""

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
* ``status``: any HTTP status other than 200, 401 and 403
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
"""Reasons why a node, an edge or a node's attribute is not used to resolve names.

* ``too_many``: one response contains too many nodes or edges
* ``node_limit``, ``edge_limit``, ``address_limit``: all responses together contain too many nodes,
  edges or addresses
"""

LOOKUP_DROPS = ("ambiguous", "unknown")
"""Kinds of name lookups that are dropped because a limit is reached.

* ``ambiguous``: The names of an ambiguous address are not resolved for a flow, so they are empty.
* ``unknown``: An unknown address is not looked up by a topology query.
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
* ``client_certificate``: the certificate is missing or not trusted, or has no allowed name
* ``rejected``: the client ended the handshake with an alert, usually because it does not trust the
  server's certificate

Clients that send nothing are not counted.
"""


def _zeros(names: Sequence[str]) -> Callable[[], dict[str, int]]:
    return lambda: dict.fromkeys(names, 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that has been counted and logged."""

    reason: str
    """The reason under which metrics count the failure."""
    text: str
    """The text of the log message."""
    timestamp_s: float = field(default_factory=time.time)
    """The Unix time of the failure."""


class HistogramStats:
    """Counts observed values, in seconds, by bucket."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        """The inclusive upper bounds of the buckets, in increasing order."""
        self.counts = [0] * (len(bounds) + 1)
        """Number of values in each bucket. The last bucket has the values above all bounds."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True, eq=False)
class AnalyzerStats:
    """The counters of one analyzer's subscription."""

    name: str
    """The analyzer's alias, or its host and port."""
    up: int = 0
    """1 while the subscription is up, otherwise 0."""
    since_timestamp_s: float = field(default_factory=time.time)
    """The Unix time of the latest change of ``up``."""
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
    """Time from the latest packet of a flow to the arrival of the flow's report."""
    delivery: HistogramStats = field(default_factory=lambda: HistogramStats(AGE_BOUNDS_S))
    """Time from the agent's update of a flow to the arrival of the flow's report."""

    def set_up(self, up: int) -> None:
        if up != self.up:
            self.up = up
            self.since_timestamp_s = time.time()


@dataclass(slots=True, eq=False)
class ScrapeStats:
    """The counters of the HTTP server."""

    scrapes: int = 0
    """Number of completely served pages with flows (``/metrics`` and ``/metrics/flows``)."""
    durations: HistogramStats = field(default_factory=lambda: HistogramStats(SCRAPE_BOUNDS_S))
    """Durations of the scrapes that ``scrapes`` counts."""
    last_duration_s: float = 0.0
    """Duration of the latest scrape that ``scrapes`` counts."""
    last_bytes: int = 0
    """Size, before compression, of the latest page that ``scrapes`` counts."""
    rejected: int = 0
    """Number of rejected requests for metrics pages. ``/metrics/self`` is not counted."""
    failures: dict[str, int] = field(default_factory=_zeros(SCRAPE_FAILURES))
    """Number of incompletely served metrics pages, by reason. ``/metrics/self`` is not counted."""
    connections_rejected: int = 0
    """Number of TCP connections that were closed because ``web.max_connections`` were already
    open."""
    handshakes_failed: dict[str, int] = field(default_factory=_zeros(HANDSHAKE_FAILURES))
    """Number of failed TLS handshakes by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyLabels:
    """Labels that are empty for a part of the traffic."""

    labels: tuple[str, ...]
    bytes_share: float
    """The bytes for which all ``labels`` are empty, as a share (0 to 1) of all bytes."""


@dataclass(slots=True, eq=False)
class NameStats:
    """Counts of names from the topology, and of the queries and lookups of these names."""

    addresses: int = 0
    """Number of addresses with names."""
    nodes: int = 0
    """Number of capture points with names."""
    ambiguous: int = 0
    """Number of addresses whose names depend on the flow. Loopback and link-local addresses are not
    counted: they are ambiguous in every network."""
    unknown: int = 0
    """Number of addresses that occur in recent flows and have no names."""
    elements: int = 0
    resolutions: int = 0
    resolution_duration_s: float = 0.0
    last_reading_timestamp_s: float = 0.0
    skipped: dict[str, int] = field(default_factory=_zeros(NAME_SKIPS))
    """A gauge: number of unused nodes, edges and attributes in the current topology, by reason."""
    dropped: dict[str, int] = field(default_factory=_zeros(LOOKUP_DROPS))
    """Number of dropped lookups by kind."""
    labels_without_pods: str = ""
    """Text that lists the labels that are empty because the topology has no pods."""
    missing_pod_labels: tuple[str, ...] = ()
    """Keys of exported pod labels that no pod has."""
    is_read: bool = False
    """Whether the whole topology has been read."""
    empty_labels: tuple[EmptyLabels, ...] = ()
    """The labels that `skyfast.web.empty_labels` warns about."""
    query_duration_s: dict[str, float] = field(default_factory=dict)
    """Duration of the latest query of each kind."""


@dataclass(slots=True, eq=False)
class TopologyStats:
    """Counts of topology queries, and of the interfaces and names in their responses."""

    answers: int = 0
    last_answer_timestamp_s: float = 0.0
    interfaces: int = 0
    """A gauge: number of exported interfaces in the latest response."""
    skipped: dict[str, int] = field(default_factory=_zeros(INTERFACE_SKIPS))
    """A gauge: how many interfaces and values of the latest response are not exported, by
    reason."""
    errors: dict[str, int] = field(default_factory=_zeros(TOPOLOGY_ERRORS))
    last_failure: Failure | None = None
    names: NameStats | None = None
    """None if neither labels nor info series need names."""


@dataclass(slots=True, eq=False)
class OwnNameStats:
    """Counts of own names (names given by users), and the outcome of reading ``names_file``."""

    entries: int = 0
    keys: tuple[str, ...] = ()
    """The keys that at least one entry has."""
    file: str = ""
    last_load_successful: int = 1
    last_load_success_timestamp_s: float = 0.0
    last_failure: Failure | None = None
    labels_without_names: str = ""
    """Text that lists the labels that are empty because there are no own names."""
    missing_keys: tuple[str, ...] = ()
    """The keys that labels need but no entry has."""


@dataclass(slots=True, eq=False)
class CaptureStats:
    captures: int = 0
    skipped: dict[str, int] = field(default_factory=_zeros(CAPTURE_SKIPS))


@dataclass(slots=True, eq=False)
class ConfigStats:
    """The outcome of the latest reload, or of the start if there was no reload yet."""

    reloads: int = 0
    """Number of successful reloads, excluding the start."""
    last_reload_successful: int = 1
    last_reload_success_timestamp_s: float = field(default_factory=time.time)
    last_reload_changed: tuple[str, ...] = ()
    last_failure: Failure | None = None
    failures: dict[str, int] = field(default_factory=_zeros(RELOAD_FAILURES))


@dataclass(slots=True, eq=False)
class Stats:
    """All counters of the process except the table's counters."""

    analyzers: dict[str, AnalyzerStats] = field(default_factory=dict)
    flows_skipped: dict[str, int] = field(default_factory=_zeros(SKIP_REASONS))
    """Number of skipped flows by reason. Flows that the current table skips are not included: the
    table itself counts these flows."""
    flows_filtered: dict[str, int] = field(default_factory=dict)
    """Number of dropped flows by filter rule."""
    values_skipped: dict[str, int] = field(default_factory=dict)
    """Number of values that previous tables skipped, by field, such as ``Metric.RTT``.

    A reload can replace the table. The current table has its own counters."""
    max_connections: int = 0
    max_flows: int = 0
    flow_memory_s: float = 0.0
    clock_held: int = 0
    """1 while expiry is paused, otherwise 0."""
    clock_held_s: float = 0.0
    """Total time for which expiry has been paused."""
    observed_flow_update_s: float | None = None
    scrape: ScrapeStats = field(default_factory=ScrapeStats)
    topology: TopologyStats = field(default_factory=TopologyStats)
    own_names: OwnNameStats | None = None
    """None if there are neither own names nor labels that show own names."""
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
