"""What skyfast counts about itself: the counters' home, and their page.

The other modules increment plain integers here; rendering happens only when a page
is asked for. The names are listed in ``docs/metrics.md``.
"""

from dataclasses import dataclass, field

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
    "late",
    "table_full",
)
"""Why a flow of a good message changed nothing."""

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
    "too_big",
    "unresolved",
    "error",
)
"""Why a subscription, or the attempt at one, ended.

HTTP 401, 403, 409 and 426 are ``unauthorized``, ``forbidden``, ``conflict`` and ``upgrade``;
any other answer that is no upgrade is ``handshake``. ``timeout`` is a connection that stopped
answering pings, ``silent`` one that answers them and sends nothing.
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


def _zeros(*names: str) -> dict[str, int]:
    return dict.fromkeys(names, 0)


@dataclass(slots=True, eq=False)
class AnalyzerStats:
    """The counters of one analyzer's subscription. ``name`` is its host and port."""

    name: str
    up: int = 0
    flows: int = 0
    received_bytes: int = 0
    last_message_timestamp_s: float = 0.0
    messages: dict[tuple[str, str], int] = field(
        default_factory=lambda: {("flow", "store"): 0, ("stats", "stats"): 0}
    )
    errors: dict[str, int] = field(default_factory=lambda: _zeros(*MESSAGE_ERRORS))
    reconnects: dict[str, int] = field(default_factory=lambda: _zeros(*RECONNECT_REASONS))


@dataclass(slots=True, eq=False)
class ScrapeStats:
    """The counters of the page."""

    scrapes: int = 0
    last_duration_s: float = 0.0
    last_bytes: int = 0


@dataclass(slots=True, eq=False)
class TopologyStats:
    """The counters of the topology API, and what its last answer held.

    ``interfaces`` and ``skipped`` describe the last answer, so they are gauges.
    """

    answers: int = 0
    last_answer_timestamp_s: float = 0.0
    interfaces: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: _zeros(*INTERFACE_SKIPS))
    errors: dict[str, int] = field(default_factory=lambda: _zeros(*TOPOLOGY_ERRORS))


@dataclass(slots=True, eq=False)
class Stats:
    """Every counter of the process that is not kept by the table itself."""

    analyzers: dict[str, AnalyzerStats] = field(default_factory=dict)
    flows_skipped: dict[str, int] = field(default_factory=lambda: _zeros(*SKIP_REASONS))
    flows_finished: dict[str, int] = field(
        default_factory=lambda: _zeros("timeout", "fin", "rst", "other")
    )
    scrape: ScrapeStats = field(default_factory=ScrapeStats)
    topology: TopologyStats = field(default_factory=TopologyStats)

    def analyzer(self, name: str) -> AnalyzerStats:
        """Return the counters of ``name``, created at zero when it is new."""
        stats = self.analyzers.get(name)
        if stats is None:
            stats = self.analyzers[name] = AnalyzerStats(name)
        return stats
