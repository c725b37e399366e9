"""The metrics of skyfast itself: the families ``skyfast_*`` and ``process_*``.

``docs/reference/self-metrics.md`` lists these metrics.
"""

import platform
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from skyfast import __version__
from skyfast.runtime.process import process_usage
from skyfast.stats import (
    Stats,
    TableCounts,
    sums,
)
from skyfast.text_format import MetricFamily, Sample
from skyfast.web.self_metric_types import (
    Sources,
    by_analyzer,
    by_analyzer_and_reason,
    by_label,
    by_view,
    histogram,
    histogram_by_analyzer,
    metric,
    of_names,
    of_names_by_label,
    of_own_names,
    of_process,
    single,
)

_BUILD: Final = {"version": __version__, "python": platform.python_version()}


def _messages(source: Sources) -> Iterable[Sample]:
    return [
        ({"analyzer": analyzer.name, "namespace": namespace, "type": type_}, count)
        for analyzer in source.stats.analyzers.values()
        for (namespace, type_), count in analyzer.messages.items()
    ]


def _values_skipped(source: Sources) -> Mapping[str, int]:
    counts = sums(source.stats.values_skipped, source.table.values_skipped)
    return dict(sorted(counts.items()))


def _last_reload_failure_timestamp_s(source: Sources) -> float:
    failure = source.stats.config.last_failure
    return failure.timestamp_s if failure else 0


_SUBSCRIPTIONS: Final = (
    metric(
        "skyfast_build_info",
        "Version information. The value is always 1.",
        lambda _: [(_BUILD, 1)],
    ),
    metric(
        "skyfast_up",
        "Whether skyfast is subscribed to the analyzer.",
        by_analyzer(lambda analyzer: analyzer.up),
    ),
    metric(
        "skyfast_messages_total",
        "Messages received from the analyzer.",
        _messages,
    ),
    metric(
        "skyfast_received_bytes_total",
        "Bytes of messages received from the analyzer.",
        by_analyzer(lambda analyzer: analyzer.received_bytes),
    ),
    metric(
        "skyfast_last_message_timestamp_seconds",
        "Unix time of the latest message from the analyzer; 0 before the first.",
        by_analyzer(lambda analyzer: analyzer.last_message_timestamp_s),
    ),
    metric(
        "skyfast_message_errors_total",
        "Messages dropped, by reason.",
        by_analyzer_and_reason(lambda analyzer: analyzer.errors),
    ),
    metric(
        "skyfast_reconnects_total",
        "Subscriptions that ended or failed, by reason.",
        by_analyzer_and_reason(lambda analyzer: analyzer.reconnects),
    ),
    metric(
        "skyfast_flows_total",
        "Flow reports received from the analyzer.",
        by_analyzer(lambda analyzer: analyzer.flows),
    ),
    metric(
        "skyfast_flows_misdated_total",
        "Flow reports whose latest packet has an implausible time, compared with the clock of"
        " skyfast's host.",
        by_analyzer_and_reason(lambda analyzer: analyzer.misdated),
    ),
    metric(
        "skyfast_reports_checked_total",
        "Randomly chosen flow reports for which skyfast checked whether the previous report of the"
        " flow is missing.",
        by_analyzer(lambda analyzer: analyzer.reports_checked),
    ),
    metric(
        "skyfast_report_gaps_total",
        "Randomly chosen flow reports for which the previous report of the flow is missing, by"
        " reason.",
        by_analyzer_and_reason(lambda analyzer: analyzer.report_gaps),
    ),
    histogram(
        "skyfast_report_packet_age_seconds",
        "Time from a flow's latest packet until its report arrives, for randomly chosen reports.",
        histogram_by_analyzer(lambda analyzer: analyzer.packet_age),
    ),
    histogram(
        "skyfast_report_delivery_seconds",
        "Time from when an agent updates a flow's counters until its report arrives, for randomly"
        " chosen reports.",
        histogram_by_analyzer(lambda analyzer: analyzer.delivery),
    ),
)

_TABLE: Final = (
    metric(
        "skyfast_flows_skipped_total",
        "Flow reports skipped, by reason.",
        by_label("reason", lambda source: sums(source.stats.flows_skipped, source.table.skipped)),
    ),
    metric(
        "skyfast_flows_filtered_total",
        "Flow reports dropped because of filter.keep or filter.drop, by rule.",
        by_label("rule", lambda source: source.stats.flows_filtered),
    ),
    metric(
        "skyfast_values_skipped_total",
        "Unusable field values ignored in flow reports, by field.",
        by_label("field", _values_skipped),
    ),
    metric(
        "skyfast_flows_finished_total",
        "Flow reports with a finish reason, by reason.",
        by_label("reason", lambda source: source.table.finished),
    ),
    metric(
        "skyfast_connections",
        "Connections in the table.",
        single(lambda source: source.table.connections),
    ),
    metric(
        "skyfast_flows",
        "Live flows in the table: flows that have been reported recently.",
        single(lambda source: source.table.flows),
        # In OpenMetrics, a gauge must not be called skyfast_flows: this is the family name of the
        # counter skyfast_flows_total.
        standard_name="skyfast_table_flows",
    ),
    metric(
        "skyfast_dormant_flows",
        "Dormant flows: they are no longer reported, but skyfast remembers their counters.",
        single(lambda source: source.table.dormant_flows),
    ),
    metric(
        "skyfast_dormant_connections",
        "Expired connections whose counters skyfast remembers: if such a connection returns, its"
        " counters continue from these values.",
        single(lambda source: source.table.dormant_connections),
    ),
    metric(
        "skyfast_connections_limit",
        "Maximum number of connections. The same limit applies to the rows of each view.",
        single(lambda source: source.stats.max_connections),
    ),
    metric(
        "skyfast_flows_limit",
        "Maximum number of live and dormant flows together.",
        single(lambda source: source.stats.max_flows),
    ),
    metric(
        "skyfast_flow_memory_seconds",
        "How long skyfast remembers the counters of a dormant flow.",
        single(lambda source: source.stats.flow_memory_s),
    ),
    metric(
        "skyfast_table_bytes",
        "Memory used by the table.",
        single(lambda source: source.table.bytes),
    ),
    metric(
        "skyfast_connections_created_total",
        "Connections created.",
        single(lambda source: source.table.created_total),
    ),
    metric(
        "skyfast_connections_expired_total",
        "Connections removed because they were no longer reported.",
        single(lambda source: source.table.expired_total),
    ),
    metric(
        "skyfast_connections_rejected_total",
        "Flow reports rejected because they needed a new connection and the table was full.",
        single(lambda source: source.table.rejected_total),
    ),
    metric(
        "skyfast_connections_overflowed_total",
        "Flow reports added to the overflow connection because the table was full.",
        single(lambda source: source.table.overflowed_total),
    ),
    metric(
        "skyfast_view_connections",
        "Rows of the view: one for each combination of label values.",
        by_view(lambda table: table.view_connections),
    ),
    metric(
        "skyfast_view_connections_rejected_total",
        "Flow reports that the view did not count, because they needed a new row and the view had"
        " reached its maximum number of rows.",
        by_view(lambda table: table.view_rejected_totals),
    ),
    metric(
        "skyfast_clock_held",
        "Whether the expiry of connections is paused because reports may be missing.",
        single(lambda source: source.stats.clock_held),
    ),
    metric(
        "skyfast_clock_held_seconds_total",
        "Time for which the expiry of connections was paused because reports may be missing.",
        single(lambda source: source.stats.clock_held_s),
    ),
)

_TOPOLOGY: Final = (
    metric(
        "skyfast_interfaces",
        "Interfaces exported.",
        single(lambda source: source.stats.topology.interfaces),
    ),
    metric(
        "skyfast_interfaces_skipped",
        "Nodes of the latest topology response that are not exported, by reason.",
        by_label("reason", lambda source: source.stats.topology.skipped),
    ),
    metric(
        "skyfast_topology_answers_total",
        "Successful topology queries.",
        single(lambda source: source.stats.topology.answers),
    ),
    metric(
        "skyfast_topology_last_answer_timestamp_seconds",
        "Unix time of the latest successful topology query; 0 before the first.",
        single(lambda source: source.stats.topology.last_answer_timestamp_s),
    ),
    metric(
        "skyfast_topology_errors_total",
        "Failed topology queries, by reason.",
        by_label("reason", lambda source: source.stats.topology.errors),
    ),
    metric(
        "skyfast_captures",
        "Captures exported.",
        single(lambda source: source.stats.captures.captures),
    ),
    metric(
        "skyfast_capture_reports_skipped_total",
        "Skipped reports of capture statistics, by reason.",
        by_label("reason", lambda source: source.stats.captures.skipped),
    ),
)

_NAMES: Final = (
    metric(
        "skyfast_names",
        "Addresses and capture points with names from the topology, by kind.",
        of_names_by_label(
            "kind", lambda names: {"address": names.addresses, "capture_point": names.nodes}
        ),
    ),
    metric(
        "skyfast_names_ambiguous",
        "Addresses whose names depend on the flow, because several nodes can use the same address."
        " Loopback and link-local addresses are not counted.",
        of_names(lambda names: names.ambiguous),
    ),
    metric(
        "skyfast_names_unknown",
        "Unknown addresses in recent flows: they are missing from the topology, so skyfast queries"
        " analyzers for them.",
        of_names(lambda names: names.unknown),
    ),
    metric(
        "skyfast_name_lookups_dropped_total",
        "Name lookups dropped because a limit was reached, by reason.",
        of_names_by_label("reason", lambda names: names.dropped),
    ),
    metric(
        "skyfast_names_elements",
        "Topology nodes and edges from which skyfast resolves names.",
        of_names(lambda names: names.elements),
    ),
    metric(
        "skyfast_names_skipped",
        "Nodes, edges and node attributes of the current topology that skyfast cannot use, by"
        " reason.",
        of_names_by_label("reason", lambda names: names.skipped),
    ),
    metric(
        "skyfast_names_last_reading_timestamp_seconds",
        "Unix time of the latest successful topology query for names; 0 before the first.",
        of_names(lambda names: names.last_reading_timestamp_s),
    ),
    metric(
        "skyfast_names_resolutions_total",
        "Number of times that skyfast resolved all names because the topology had changed.",
        of_names(lambda names: names.resolutions),
    ),
    metric(
        "skyfast_names_resolution_duration_seconds",
        "Duration of the latest resolution of all names.",
        of_names(lambda names: names.resolution_duration_s),
    ),
    metric(
        "skyfast_names_query_duration_seconds",
        "Duration of the latest topology query for names, by kind of query.",
        of_names_by_label("query", lambda names: names.query_duration_s),
    ),
)

_OWN_NAMES: Final = (
    metric(
        "skyfast_own_names",
        "Number of own names: entries in 'names', and in the file that 'names_file' specifies.",
        of_own_names(lambda own: own.entries),
    ),
    metric(
        "skyfast_own_names_last_load_successful",
        "Whether the latest load of own names ('names' and 'names_file') succeeded.",
        of_own_names(lambda own: own.last_load_successful),
    ),
    metric(
        "skyfast_own_names_last_load_success_timestamp_seconds",
        "Unix time of the latest successful load of own names ('names' and 'names_file').",
        of_own_names(lambda own: own.last_load_success_timestamp_s),
    ),
)

_CONFIG: Final = (
    metric(
        "skyfast_config_last_reload_successful",
        "Whether the latest reload of the configuration succeeded.",
        single(lambda source: source.stats.config.last_reload_successful),
    ),
    metric(
        "skyfast_config_last_reload_success_timestamp_seconds",
        "Unix time of the latest successful reload, or of the start if there was no such reload.",
        single(lambda source: source.stats.config.last_reload_success_timestamp_s),
    ),
    metric(
        "skyfast_config_last_reload_failure_timestamp_seconds",
        "Unix time of the latest failed reload; 0 if none failed.",
        single(_last_reload_failure_timestamp_s),
    ),
    metric(
        "skyfast_config_last_reload_changed",
        "Configuration keys changed by the latest successful reload. The value is always 1.",
        by_label("key", lambda source: dict.fromkeys(source.stats.config.last_reload_changed, 1)),
    ),
    metric(
        "skyfast_config_reload_failures_total",
        "Failed reloads of the configuration, by reason.",
        by_label("reason", lambda source: source.stats.config.failures),
    ),
)

_SCRAPES: Final = (
    metric(
        "skyfast_scrapes_total",
        "Scrapes of /metrics and /metrics/flows that were served completely.",
        single(lambda source: source.stats.scrape.scrapes),
    ),
    histogram(
        "skyfast_scrape_duration_seconds",
        "Duration of scrapes of /metrics and /metrics/flows.",
        lambda source: [({}, source.stats.scrape.durations)],
    ),
    metric(
        "skyfast_last_scrape_duration_seconds",
        "Duration of the latest scrape of /metrics or /metrics/flows.",
        single(lambda source: source.stats.scrape.last_duration_s),
    ),
    metric(
        "skyfast_last_scrape_bytes",
        "Uncompressed size of the latest scrape of /metrics or /metrics/flows.",
        single(lambda source: source.stats.scrape.last_bytes),
    ),
    metric(
        "skyfast_scrapes_rejected_total",
        "Requests refused with HTTP status 503 because too many pages were being served.",
        single(lambda source: source.stats.scrape.rejected),
    ),
    metric(
        "skyfast_scrapes_failed_total",
        "Pages that were not served completely, by reason.",
        by_label("reason", lambda source: source.stats.scrape.failures),
    ),
    metric(
        "skyfast_http_connections_rejected_total",
        "HTTP connections closed because too many were open.",
        single(lambda source: source.stats.scrape.connections_rejected),
    ),
    metric(
        "skyfast_tls_handshakes_failed_total",
        "Failed TLS handshakes of HTTP clients, by reason.",
        by_label("reason", lambda source: source.stats.scrape.handshakes_failed),
    ),
)

# The process metrics of Prometheus client libraries, with the same names.
_PROCESS: Final = (
    metric(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        single(lambda _: time.process_time()),
    ),
    metric(
        "process_max_fds",
        "Maximum number of open file descriptors.",
        single(lambda _: resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ),
    metric(
        "process_open_fds",
        "Number of open file descriptors.",
        of_process(lambda usage: usage.open_fds),
    ),
    metric(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        of_process(lambda usage: usage.virtual_bytes),
    ),
    metric(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        of_process(lambda usage: usage.resident_bytes),
    ),
    metric(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        of_process(lambda usage: usage.start_time_s),
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
    help="Bytes of the hidden connections, both directions together.",
)

_LABEL_VALUES: Final = MetricFamily(
    name="skyfast_label_values",
    type="gauge",
    help="Number of distinct values of each exported label.",
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

    * ``views`` are the prefixes of all views except the first view, in the table's order.
    * ``openmetrics`` is the major version of OpenMetrics, or 0 for the text format 0.0.4. The end
      ``# EOF`` is not included. Version 1 requires ``standard_names``.

    Counters have no start times, because some counters restart at 0 when a reload replaces the
    table. Call this function on the event loop, because it reads the counters without a lock.
    """
    try:
        usage = process_usage()
    except OSError:
        usage = None
    source = Sources(stats=stats, table=table, views=views, process=usage)
    parts = (
        metric.render(source, standard_names=standard_names, openmetrics=openmetrics)
        for metric in _METRICS
    )
    return "".join(parts).encode(errors="replace")


def render_hidden(hidden: Mapping[str, tuple[int, int] | None], *, openmetrics: int = 0) -> bytes:
    """Return the families ``skyfast_hidden_…``, or b"" if no view has bounds.

    ``hidden`` maps the prefix of each view to the number and the bytes of its hidden connections. A
    view without bounds is mapped to None.
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
    samples = [({"label": label}, count) for label, count in values.items()]
    return _LABEL_VALUES.render(samples, openmetrics=openmetrics).encode(errors="replace")
