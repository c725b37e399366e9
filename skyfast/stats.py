"""Counters of skyfast itself: plain records that other modules increment.

`skyfast.web.self_metrics` shows them as metrics.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

NAMESPACES = ("flow", "stats", "other")
"""Values of the label ``namespace``: anything an analyzer invents is ``other``."""

MESSAGE_TYPES = ("store", "stats", "other")
"""Values of the label ``type``, bounded in the same way."""

MESSAGE_ERRORS = ("malformed", "not_a_message", "not_a_list", "too_big")
"""Why a whole message was dropped.

``malformed`` is no JSON, ``not_a_message`` is JSON of another shape, ``not_a_list`` is a
``store`` message whose ``Obj`` is neither a list nor null, and ``too_big`` is longer than
``max_message_bytes``.
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
"""Why a flow of a good message changed nothing."""

CAPTURE_SKIPS = ("invalid", "no_id", "text_too_long", "out_of_range", "too_many")
"""Why a report of a capture's statistics was not used."""

MISDATED_REASONS = ("ahead", "behind")
"""How the time of a flow differs from ours, beyond the bounds of `skyfast.skydive.clock_skew`."""

GAP_REASONS = ("lost", "ours")
"""Why a report is missing: it was lost on its way, or skyfast skipped it or was not listening."""

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
"""Why a subscription, or the attempt at one, ended.

HTTP 401, 403, 409 and 426 are ``unauthorized``, ``forbidden``, ``conflict`` and ``upgrade``;
any other answer that is no upgrade is ``handshake``. ``timeout`` is a connection that stopped
answering pings, ``silent`` one that answers them and sends nothing, ``overload`` one that the
analyzer gave up because we did not read it fast enough.
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
"""Why an analyzer's topology API gave no interfaces.

HTTP 401 and 403 are ``unauthorized`` and ``forbidden``, any other answer but 200 is
``status``. ``malformed`` is an answer that is no JSON list, ``too_big`` one beyond
``topology.MAX_ANSWER_BYTES``.
"""

INTERFACE_SKIPS = ("invalid", "no_id", "text_too_long", "duplicate", "too_many", "out_of_range")
"""Why a node of the last answer is not shown; ``out_of_range`` counts single values instead."""

FLOW_UPDATE_S = 60.0
"""Skydive's own default of ``flow.update``."""

SCRAPE_FAILURES = ("deadline", "disconnected", "error")
"""Why a page was begun and not served whole: it took too long, its reader left, it broke."""

RELOAD_FAILURES = ("configuration", "web_configuration", "error")
"""Why the configuration was not reloaded: it is wrong, that of the web is, skyfast is."""

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
"""Why a client was not connected to the port of HTTPS.

``unsupported`` is no common TLS version, cipher suite or curve, ``client_certificate`` one that
is missing, not trusted or of no allowed name, ``rejected`` a client that ended the handshake with
an alert, mostly because it does not trust the server's certificate. Clients that send nothing are
not counted.
"""


def _zeros(names: Sequence[str]) -> Callable[[], dict[str, int]]:
    """Return what makes the counts by these names, each 0."""
    return lambda: dict.fromkeys(names, 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong: one of the reasons that are counted, and a text that is fit for a log."""

    reason: str
    text: str
    timestamp_s: float = field(default_factory=time.time)


@dataclass(slots=True, eq=False)
class AnalyzerStats:
    """The counters of one analyzer's subscription. ``name`` is its host and port.

    ``up`` is what it is since the Unix time ``since_timestamp_s``.
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

    def set_up(self, up: int) -> None:
        """Let it be ``up`` from now on, where it was not."""
        if up != self.up:
            self.up = up
            self.since_timestamp_s = time.time()


@dataclass(slots=True, eq=False)
class ScrapeStats:
    """The counters of the HTTP server.

    ``scrapes`` and ``last_…`` are of pages with flows on them (``/metrics``, ``/metrics/flows``)
    that were served whole; ``last_bytes`` is counted before compression. ``rejected`` and
    ``failures`` are of the pages of interfaces too. ``connections_rejected`` counts TCP
    connections closed because ``web.max_connections`` were open, ``handshakes_failed`` those
    that got no further than the TLS handshake.
    """

    scrapes: int = 0
    last_duration_s: float = 0.0
    last_bytes: int = 0
    rejected: int = 0
    failures: dict[str, int] = field(default_factory=_zeros(SCRAPE_FAILURES))
    connections_rejected: int = 0
    handshakes_failed: dict[str, int] = field(default_factory=_zeros(HANDSHAKE_FAILURES))


@dataclass(slots=True, eq=False)
class TopologyStats:
    """The counters of the topology API, and what its last answer held.

    ``interfaces`` and ``skipped`` describe the last answer, so they are gauges.
    """

    answers: int = 0
    last_answer_timestamp_s: float = 0.0
    interfaces: int = 0
    skipped: dict[str, int] = field(default_factory=_zeros(INTERFACE_SKIPS))
    errors: dict[str, int] = field(default_factory=_zeros(TOPOLOGY_ERRORS))
    last_failure: Failure | None = None


@dataclass(slots=True, eq=False)
class CaptureStats:
    """How many captures are known now, and the reports of them that were not used."""

    captures: int = 0
    skipped: dict[str, int] = field(default_factory=_zeros(CAPTURE_SKIPS))


@dataclass(slots=True, eq=False)
class ConfigStats:
    """How the latest reload of the configuration went. The start counts as the first.

    ``last_reload_changed`` are the keys that the latest successful one changed. ``last_failure``
    is why the latest one that failed did, and ``failures`` counts them by its reason.
    """

    last_reload_successful: int = 1
    last_reload_success_timestamp_s: float = field(default_factory=time.time)
    last_reload_changed: tuple[str, ...] = ()
    last_failure: Failure | None = None
    failures: dict[str, int] = field(default_factory=_zeros(RELOAD_FAILURES))


@dataclass(slots=True, eq=False)
class Stats:
    """Every counter of the process that is not kept by the table itself.

    ``flows_filtered`` counts by the name of the rule that a flow was dropped by; whoever makes the
    rules puts their names there. ``values_skipped`` counts by field, such as ``Metric.RTT``, what
    tables before the present one left out. ``max_connections``, ``max_flows`` and ``flow_memory_s``
    are the table's limits, put there by whoever sets them. ``clock_held`` is 1 while the table's
    clock is held, and ``clock_held_s`` is the time for which it was.
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
    captures: CaptureStats = field(default_factory=CaptureStats)
    config: ConfigStats = field(default_factory=ConfigStats)

    @property
    def flow_update_s(self) -> float:
        """The analyzers' ``flow.update``, as seen in reports; `FLOW_UPDATE_S` until known."""
        known_s = self.observed_flow_update_s
        return FLOW_UPDATE_S if known_s is None else known_s

    @flow_update_s.setter
    def flow_update_s(self, seconds: float) -> None:
        self.observed_flow_update_s = seconds

    @property
    def flow_update_known(self) -> bool:
        """Whether ``flow_update_s`` was set since the start."""
        return self.observed_flow_update_s is not None

    def analyzer(self, name: str) -> AnalyzerStats:
        """Return the counters of ``name``, created at zero when it is new."""
        stats = self.analyzers.get(name)
        if stats is None:
            stats = self.analyzers[name] = AnalyzerStats(name)
        return stats


class TableCounts(Protocol):
    """What is shown of the table; every property is cheap."""

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


def sums(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Add up what was counted outside of the table and inside of it."""
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
