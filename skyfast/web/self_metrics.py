"""The metrics of skyfast itself: the families ``skyfast_*`` and ``process_*``.

These metrics are rendered only when requested. ``docs/reference/self-metrics.md`` lists them.
"""

import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from skyfast import __version__
from skyfast.runtime.process import ProcessUsage, process_usage
from skyfast.stats import (
    AnalyzerStats,
    Histogram,
    NameStats,
    OwnNameStats,
    Stats,
    TableCounts,
    sums,
)
from skyfast.text_format import MetricFamily, Sample

_BUILD: Final = {"version": __version__, "python": platform.python_version()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """The sources of a page. ``process`` is None if the system does not report resource usage."""

    stats: Stats
    table: TableCounts
    views: Sequence[str]
    process: ProcessUsage | None


_Samples = Callable[[_Sources], Iterable[Sample] | None]
"""Returns a family's samples; None leaves the family out of the page."""


_Histograms = Callable[[_Sources], Iterable[tuple[Mapping[str, str], Histogram]]]
"""Returns a family's histograms with their labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metric:
    """A family, its variant for standard names, and a function that returns its samples."""

    family: MetricFamily
    standard: MetricFamily
    samples: _Samples

    def render(self, source: _Sources, *, standard_names: bool, openmetrics: int) -> str:
        """Return the family; "" if there are no samples."""
        samples = self.samples(source)
        if samples is None:
            return ""
        family = self.standard if standard_names else self.family
        return family.render(samples, openmetrics=openmetrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class _HistogramMetric:
    """A family of histograms, and a function that returns them."""

    family: MetricFamily
    histograms: _Histograms

    def render(self, source: _Sources, *, standard_names: bool, openmetrics: int) -> str:
        """Return the family, which has the same name in both naming schemes."""
        return self.family.render_histograms(self.histograms(source), openmetrics=openmetrics)


def _metric(name: str, help_text: str, samples: _Samples, *, standard_name: str = "") -> _Metric:
    """Declare a metric: a counter if its name ends with ``_total``, otherwise a gauge."""
    family = MetricFamily(
        name=name, type="counter" if name.endswith("_total") else "gauge", help=help_text
    )
    standard = replace(family, name=standard_name or name)
    return _Metric(family=family, standard=standard, samples=samples)


def _histogram(name: str, help_text: str, histograms: _Histograms) -> _HistogramMetric:
    """Declare a metric of histograms."""
    family = MetricFamily(name=name, type="histogram", help=help_text)
    return _HistogramMetric(family=family, histograms=histograms)


def _value(read: Callable[[_Sources], float]) -> _Samples:
    """Read a single value."""
    return lambda source: [({}, read(source))]


def _by(label: str, read: Callable[[_Sources], Mapping[str, float]]) -> _Samples:
    """Read a value for each value of ``label``."""
    return lambda source: [({label: key}, value) for key, value in read(source).items()]


def _name(read: Callable[[NameStats], float]) -> _Samples:
    """Read a value of the names, if labels need names."""
    return lambda source: (
        None if source.stats.topology.names is None else [({}, read(source.stats.topology.names))]
    )


def _name_by(label: str, read: Callable[[NameStats], Mapping[str, float]]) -> _Samples:
    """Read a value of the names for each value of ``label``, if labels need names."""
    return lambda source: (
        None
        if source.stats.topology.names is None
        else [({label: key}, value) for key, value in read(source.stats.topology.names).items()]
    )


def _own_name(read: Callable[[OwnNameStats], float]) -> _Samples:
    """Read a value of the own names, if there are own names."""
    return lambda source: (
        None if source.stats.own_names is None else [({}, read(source.stats.own_names))]
    )


def _by_view(read: Callable[[TableCounts], Sequence[int]]) -> _Samples:
    """Read a value for each view except the main view."""
    return _by("view", lambda source: dict(zip(source.views, read(source.table), strict=True)))


def _by_analyzer(read: Callable[[AnalyzerStats], float]) -> _Samples:
    """Read a value for each analyzer."""
    return _by(
        "analyzer",
        lambda source: {
            analyzer.name: read(analyzer) for analyzer in source.stats.analyzers.values()
        },
    )


def _by_analyzer_and_reason(read: Callable[[AnalyzerStats], Mapping[str, int]]) -> _Samples:
    """Read a value for each analyzer and reason."""
    return lambda source: [
        ({"analyzer": analyzer.name, "reason": reason}, count)
        for analyzer in source.stats.analyzers.values()
        for reason, count in read(analyzer).items()
    ]


def _histogram_by_analyzer(read: Callable[[AnalyzerStats], Histogram]) -> _Histograms:
    """Read a histogram of each analyzer."""
    return lambda source: [
        ({"analyzer": analyzer.name}, read(analyzer))
        for analyzer in source.stats.analyzers.values()
    ]


def _messages(source: _Sources) -> Iterable[Sample]:
    return [
        ({"analyzer": analyzer.name, "namespace": namespace, "type": type_}, count)
        for analyzer in source.stats.analyzers.values()
        for (namespace, type_), count in analyzer.messages.items()
    ]


def _values_skipped(source: _Sources) -> Mapping[str, int]:
    counts = sums(source.stats.values_skipped, source.table.values_skipped)
    return dict(sorted(counts.items()))


def _last_reload_failure_timestamp_s(source: _Sources) -> float:
    failure = source.stats.config.last_failure
    return failure.timestamp_s if failure else 0


def _process(read: Callable[[ProcessUsage], float]) -> _Samples:
    """Read a value of the process, if the system reports it."""
    return lambda source: None if source.process is None else [({}, read(source.process))]


_SUBSCRIPTIONS: Final = (
    _metric(
        "skyfast_build_info",
        "Version information. The value is always 1.",
        lambda _: [(_BUILD, 1)],
    ),
    _metric(
        "skyfast_up",
        "Whether skyfast is subscribed to the analyzer.",
        _by_analyzer(lambda analyzer: analyzer.up),
    ),
    _metric(
        "skyfast_messages_total",
        "Messages received from the analyzer.",
        _messages,
    ),
    _metric(
        "skyfast_received_bytes_total",
        "Bytes of messages received from the analyzer.",
        _by_analyzer(lambda analyzer: analyzer.received_bytes),
    ),
    _metric(
        "skyfast_last_message_timestamp_seconds",
        "Unix time of the latest message from the analyzer; 0 before the first.",
        _by_analyzer(lambda analyzer: analyzer.last_message_timestamp_s),
    ),
    _metric(
        "skyfast_message_errors_total",
        "Messages dropped, by reason.",
        _by_analyzer_and_reason(lambda analyzer: analyzer.errors),
    ),
    _metric(
        "skyfast_reconnects_total",
        "Subscriptions that ended or failed, by reason.",
        _by_analyzer_and_reason(lambda analyzer: analyzer.reconnects),
    ),
    _metric(
        "skyfast_flows_total",
        "Flow reports received from the analyzer.",
        _by_analyzer(lambda analyzer: analyzer.flows),
    ),
    _metric(
        "skyfast_flows_misdated_total",
        "Flow reports whose latest packet is dated far from the local time, by reason.",
        _by_analyzer_and_reason(lambda analyzer: analyzer.misdated),
    ),
    _metric(
        "skyfast_reports_checked_total",
        "Randomly chosen flow reports for which skyfast checked whether the previous report of the"
        " flow is missing.",
        _by_analyzer(lambda analyzer: analyzer.reports_checked),
    ),
    _metric(
        "skyfast_report_gaps_total",
        "Checked flow reports whose previous report is missing, by reason.",
        _by_analyzer_and_reason(lambda analyzer: analyzer.report_gaps),
    ),
    _histogram(
        "skyfast_report_packet_age_seconds",
        "Time from a flow's latest packet until its report arrives, for randomly chosen reports.",
        _histogram_by_analyzer(lambda analyzer: analyzer.packet_age),
    ),
    _histogram(
        "skyfast_report_delivery_seconds",
        "Time from an agent's update of a flow until the report arrives, for randomly chosen"
        " reports.",
        _histogram_by_analyzer(lambda analyzer: analyzer.delivery),
    ),
)

_TABLE: Final = (
    _metric(
        "skyfast_flows_skipped_total",
        "Flow reports skipped, by reason.",
        _by("reason", lambda source: sums(source.stats.flows_skipped, source.table.skipped)),
    ),
    _metric(
        "skyfast_flows_filtered_total",
        "Flow reports dropped because of filter.keep or filter.drop, by rule.",
        _by("rule", lambda source: source.stats.flows_filtered),
    ),
    _metric(
        "skyfast_values_skipped_total",
        "Unusable field values ignored in flow reports, by field.",
        _by("field", _values_skipped),
    ),
    _metric(
        "skyfast_flows_finished_total",
        "Flow reports with a finish reason, by reason.",
        _by("reason", lambda source: source.table.finished),
    ),
    _metric(
        "skyfast_connections",
        "Connections in the table.",
        _value(lambda source: source.table.connections),
    ),
    _metric(
        "skyfast_flows",
        "Flows in the table.",
        _value(lambda source: source.table.flows),
        # In OpenMetrics, this name would collide with the counter skyfast_flows_total.
        standard_name="skyfast_table_flows",
    ),
    _metric(
        "skyfast_dormant_flows",
        "Dormant flows: they are no longer reported, but skyfast remembers their counters.",
        _value(lambda source: source.table.dormant_flows),
    ),
    _metric(
        "skyfast_dormant_connections",
        "Expired connections whose counters skyfast remembers in addition to those of their flows.",
        _value(lambda source: source.table.dormant_connections),
    ),
    _metric(
        "skyfast_connections_limit",
        "Maximum number of connections, and of rows in each view.",
        _value(lambda source: source.stats.max_connections),
    ),
    _metric(
        "skyfast_flows_limit",
        "Maximum number of flows.",
        _value(lambda source: source.stats.max_flows),
    ),
    _metric(
        "skyfast_flow_memory_seconds",
        "How long skyfast remembers the counters of an expired flow.",
        _value(lambda source: source.stats.flow_memory_s),
    ),
    _metric(
        "skyfast_table_bytes",
        "Memory used by the table.",
        _value(lambda source: source.table.bytes),
    ),
    _metric(
        "skyfast_connections_created_total",
        "Connections created.",
        _value(lambda source: source.table.created_total),
    ),
    _metric(
        "skyfast_connections_expired_total",
        "Connections removed because they were no longer reported.",
        _value(lambda source: source.table.expired_total),
    ),
    _metric(
        "skyfast_connections_rejected_total",
        "Flow reports rejected because they needed a new connection and the table was full.",
        _value(lambda source: source.table.rejected_total),
    ),
    _metric(
        "skyfast_connections_overflowed_total",
        "Flow reports added to the overflow connection.",
        _value(lambda source: source.table.overflowed_total),
    ),
    _metric(
        "skyfast_view_connections",
        "Rows of the view: one for each combination of label values.",
        _by_view(lambda table: table.view_connections),
    ),
    _metric(
        "skyfast_view_connections_rejected_total",
        "Flow reports that the view did not count, because they needed a new row in a full view.",
        _by_view(lambda table: table.view_rejected_totals),
    ),
    _metric(
        "skyfast_clock_held",
        "Whether expiry is paused because reports may be missing.",
        _value(lambda source: source.stats.clock_held),
    ),
    _metric(
        "skyfast_clock_held_seconds_total",
        "Time for which expiry was paused because reports may be missing.",
        _value(lambda source: source.stats.clock_held_s),
    ),
)

_TOPOLOGY: Final = (
    _metric(
        "skyfast_interfaces",
        "Interfaces exported.",
        _value(lambda source: source.stats.topology.interfaces),
    ),
    _metric(
        "skyfast_interfaces_skipped",
        "Nodes of the latest topology response that are not exported, by reason.",
        _by("reason", lambda source: source.stats.topology.skipped),
    ),
    _metric(
        "skyfast_topology_answers_total",
        "Successful topology queries.",
        _value(lambda source: source.stats.topology.answers),
    ),
    _metric(
        "skyfast_topology_last_answer_timestamp_seconds",
        "Unix time of the latest successful topology query; 0 before the first.",
        _value(lambda source: source.stats.topology.last_answer_timestamp_s),
    ),
    _metric(
        "skyfast_topology_errors_total",
        "Failed topology queries, by reason.",
        _by("reason", lambda source: source.stats.topology.errors),
    ),
    _metric(
        "skyfast_captures",
        "Captures exported.",
        _value(lambda source: source.stats.captures.captures),
    ),
    _metric(
        "skyfast_capture_reports_skipped_total",
        "Reports of capture statistics that were skipped, by reason.",
        _by("reason", lambda source: source.stats.captures.skipped),
    ),
)

_NAMES: Final = (
    _metric(
        "skyfast_names",
        "Addresses and capture points with names from the topology, by kind.",
        _name_by("kind", lambda names: {"address": names.addresses, "capture_point": names.nodes}),
    ),
    _metric(
        "skyfast_names_ambiguous",
        "Addresses with names that depend on the flow, because several nodes can use the address.",
        _name(lambda names: names.ambiguous),
    ),
    _metric(
        "skyfast_names_unknown",
        "Unknown addresses in recent flows: they are missing in the topology, so skyfast queries"
        " analyzers for them.",
        _name(lambda names: names.unknown),
    ),
    _metric(
        "skyfast_name_lookups_dropped_total",
        "Name lookups dropped because a limit was reached, by reason.",
        _name_by("reason", lambda names: names.dropped),
    ),
    _metric(
        "skyfast_names_elements",
        "Topology nodes and edges from which skyfast resolves names.",
        _name(lambda names: names.elements),
    ),
    _metric(
        "skyfast_names_skipped",
        "Unusable nodes, edges and values of the current topology, by reason.",
        _name_by("reason", lambda names: names.skipped),
    ),
    _metric(
        "skyfast_names_last_reading_timestamp_seconds",
        "Unix time of the latest successful topology query for names; 0 before the first.",
        _name(lambda names: names.last_reading_timestamp_s),
    ),
    _metric(
        "skyfast_names_resolutions_total",
        "Number of times that skyfast resolved all names because the topology had changed.",
        _name(lambda names: names.resolutions),
    ),
    _metric(
        "skyfast_names_resolution_duration_seconds",
        "Duration of the latest resolution of all names.",
        _name(lambda names: names.resolution_duration_s),
    ),
    _metric(
        "skyfast_names_query_duration_seconds",
        "Duration of the latest topology query for names, by kind of query.",
        _name_by("query", lambda names: names.query_duration_s),
    ),
)

_OWN_NAMES: Final = (
    _metric(
        "skyfast_own_names",
        "Own names: entries in the configuration keys names and names_file.",
        _own_name(lambda own: own.entries),
    ),
    _metric(
        "skyfast_own_names_last_load_successful",
        "Whether the latest load of the own names succeeded.",
        _own_name(lambda own: own.last_load_successful),
    ),
    _metric(
        "skyfast_own_names_last_load_success_timestamp_seconds",
        "Unix time of the latest successful load of the own names.",
        _own_name(lambda own: own.last_load_success_timestamp_s),
    ),
)

_CONFIG: Final = (
    _metric(
        "skyfast_config_last_reload_successful",
        "Whether the latest reload of the configuration succeeded.",
        _value(lambda source: source.stats.config.last_reload_successful),
    ),
    _metric(
        "skyfast_config_last_reload_success_timestamp_seconds",
        "Unix time of the latest successful reload, or of the start if there was none.",
        _value(lambda source: source.stats.config.last_reload_success_timestamp_s),
    ),
    _metric(
        "skyfast_config_last_reload_failure_timestamp_seconds",
        "Unix time of the latest failed reload; 0 if none failed.",
        _value(_last_reload_failure_timestamp_s),
    ),
    _metric(
        "skyfast_config_last_reload_changed",
        "Configuration keys changed by the latest successful reload. The value is always 1.",
        _by("key", lambda source: dict.fromkeys(source.stats.config.last_reload_changed, 1)),
    ),
    _metric(
        "skyfast_config_reload_failures_total",
        "Failed reloads of the configuration, by reason.",
        _by("reason", lambda source: source.stats.config.failures),
    ),
)

_SCRAPES: Final = (
    _metric(
        "skyfast_scrapes_total",
        "Scrapes of /metrics and /metrics/flows that were served completely.",
        _value(lambda source: source.stats.scrape.scrapes),
    ),
    _histogram(
        "skyfast_scrape_duration_seconds",
        "Duration of scrapes of /metrics and /metrics/flows.",
        lambda source: [({}, source.stats.scrape.durations)],
    ),
    _metric(
        "skyfast_last_scrape_duration_seconds",
        "Duration of the latest scrape of /metrics or /metrics/flows.",
        _value(lambda source: source.stats.scrape.last_duration_s),
    ),
    _metric(
        "skyfast_last_scrape_bytes",
        "Uncompressed size of the latest scrape of /metrics or /metrics/flows.",
        _value(lambda source: source.stats.scrape.last_bytes),
    ),
    _metric(
        "skyfast_scrapes_rejected_total",
        "Requests refused with HTTP status 503 because too many pages were being served.",
        _value(lambda source: source.stats.scrape.rejected),
    ),
    _metric(
        "skyfast_scrapes_failed_total",
        "Pages that were not served completely, by reason.",
        _by("reason", lambda source: source.stats.scrape.failures),
    ),
    _metric(
        "skyfast_http_connections_rejected_total",
        "HTTP connections closed because too many were open.",
        _value(lambda source: source.stats.scrape.connections_rejected),
    ),
    _metric(
        "skyfast_tls_handshakes_failed_total",
        "Failed TLS handshakes of HTTP clients, by reason.",
        _by("reason", lambda source: source.stats.scrape.handshakes_failed),
    ),
)

# The process metrics of Prometheus client libraries, with the same names.
_PROCESS: Final = (
    _metric(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        _value(lambda _: time.process_time()),
    ),
    _metric(
        "process_max_fds",
        "Maximum number of open file descriptors.",
        _value(lambda _: resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ),
    _metric(
        "process_open_fds",
        "Number of open file descriptors.",
        _process(lambda usage: usage.open_fds),
    ),
    _metric(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        _process(lambda usage: usage.virtual_bytes),
    ),
    _metric(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        _process(lambda usage: usage.resident_bytes),
    ),
    _metric(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        _process(lambda usage: usage.start_time_s),
    ),
)

_METRICS: Final = (
    *(*_SUBSCRIPTIONS, *_TABLE, *_TOPOLOGY, *_NAMES, *_OWN_NAMES),
    *(*_CONFIG, *_SCRAPES, *_PROCESS),
)

_HIDDEN_CONNECTIONS: Final = MetricFamily(
    name="skyfast_hidden_connections",
    type="gauge",
    help="Hidden connections: they have no series, because they reach neither min_bytes nor"
    " min_packets.",
)

_HIDDEN_BYTES: Final = MetricFamily(
    name="skyfast_hidden_bytes",
    type="gauge",
    help="Bytes of the hidden connections in both directions.",
)

_LABEL_VALUES: Final = MetricFamily(
    name="skyfast_label_values",
    type="gauge",
    help="Distinct values of the label.",
)


def render(
    stats: Stats,
    table: TableCounts,
    *,
    views: Sequence[str] = (),
    standard_names: bool = False,
    openmetrics: int = 0,
) -> bytes:
    """Return the families ``skyfast_*`` and ``process_*`` that need no scan of the table.

    ``views`` are the prefixes of all views except the main view, in the table's order. The format
    is 0.0.4, or OpenMetrics without ``# EOF``. OpenMetrics 1.0 requires ``standard_names``. There
    are no start times, because some counters restart when a reload replaces the table. This takes
    well under a millisecond. The counters are read without a lock, so call this on the thread that
    writes them.
    """
    try:
        usage = process_usage()
    except OSError:
        usage = None
    source = _Sources(stats=stats, table=table, views=views, process=usage)
    parts = (
        metric.render(source, standard_names=standard_names, openmetrics=openmetrics)
        for metric in _METRICS
    )
    return "".join(parts).encode(errors="replace")


def render_hidden(hidden: Mapping[str, tuple[int, int] | None], *, openmetrics: int = 0) -> bytes:
    """Return the families ``skyfast_hidden_…``; nothing if no view has bounds.

    ``hidden`` has the hidden connections and their bytes by the prefix of the view, or None for
    views without bounds.
    """
    counts = {view: count for view, count in hidden.items() if count is not None}
    if not counts:
        return b""
    families = (
        family.render(
            (({"view": view}, count[index]) for view, count in counts.items()),
            openmetrics=openmetrics,
        )
        for index, family in enumerate((_HIDDEN_CONNECTIONS, _HIDDEN_BYTES))
    )
    return "".join(families).encode(errors="replace")


def render_label_values(values: Mapping[str, int], *, openmetrics: int = 0) -> bytes:
    """Return the family ``skyfast_label_values``."""
    samples = [({"label": label}, count) for label, count in values.items()]
    return _LABEL_VALUES.render(samples, openmetrics=openmetrics).encode(errors="replace")
