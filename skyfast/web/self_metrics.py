"""The page of skyfast's own counters: the families ``skyfast_*`` and ``process_*``.

It is rendered only when it is asked for. The names are listed in ``docs/metrics.md``.
"""

import platform
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from skyfast import __version__
from skyfast.runtime import process
from skyfast.stats import (
    CaptureStats,
    ConfigStats,
    ScrapeStats,
    Stats,
    TableCounts,
    TopologyStats,
    sums,
)
from skyfast.text_format import family_head, label_text

Sample = tuple[Mapping[str, str], float]
"""Labels and value. An integer is rendered exactly, a float as its shortest exact text."""

_UNITS = ("bytes", "seconds")


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric family; ``name`` is that of its samples, and ends with the unit or ``_total``."""

    name: str
    kind: str
    text: str
    samples: Iterable[Sample]

    def render(self, *, openmetrics: bool) -> str:
        ending = self.name.removesuffix("_total").rpartition("_")[2]
        unit = ending if ending in _UNITS else ""
        lines = [family_head(self.name, self.text, self.kind, unit=unit, openmetrics=openmetrics)]
        lines.extend(
            f"{self.name}{label_text(labels)} {value!r}\n" for labels, value in self.samples
        )
        return "".join(lines)


def render(
    stats: Stats,
    table: TableCounts,
    *,
    views: Sequence[str] = (),
    standard_names: bool = False,
    openmetrics: bool = False,
) -> bytes:
    """Return the families ``skyfast_*`` and ``process_*``, but for that of the label values.

    ``views`` are the prefixes of the views beside the main one, in the table's order. The text is
    of format 0.0.4 or, where ``standard_names`` make that possible, of OpenMetrics 1.0, without the
    end that a whole page has. Takes well under a millisecond. The counters are read without a lock,
    so this belongs on the thread that writes them.
    """
    families = (
        *_subscription_families(stats),
        *_table_families(stats, table, views, standard_names=standard_names),
        *_clock_families(stats),
        *_topology_families(stats.topology),
        *_capture_families(stats.captures),
        *_config_families(stats.config),
        *_scrape_families(stats.scrape),
        *_process_families(),
    )
    return _text(families, openmetrics=openmetrics)


def render_label_values(values: Mapping[str, int], *, openmetrics: bool = False) -> bytes:
    """Return the family of the numbers of distinct values, by label."""
    family = _Family(
        "skyfast_label_values",
        "gauge",
        "Distinct values of the label on the page, by label.",
        [({"label": label}, count) for label, count in values.items()],
    )
    return _text([family], openmetrics=openmetrics)


def _text(families: Iterable[_Family], *, openmetrics: bool) -> bytes:
    text = "".join(family.render(openmetrics=openmetrics) for family in families)
    return text.encode(errors="replace")


def _subscription_families(stats: Stats) -> Iterable[_Family]:
    build = {"version": __version__, "python": platform.python_version()}
    yield _Family(
        "skyfast_build_info", "gauge", "Always 1; the labels tell what runs.", [(build, 1)]
    )
    analyzers = [({"analyzer": analyzer.name}, analyzer) for analyzer in stats.analyzers.values()]
    yield _Family(
        "skyfast_up",
        "gauge",
        "Whether the analyzer is subscribed to.",
        [(labels, analyzer.up) for labels, analyzer in analyzers],
    )
    yield _Family(
        "skyfast_messages_total",
        "counter",
        "Messages received from the analyzer.",
        [
            ({**labels, "namespace": namespace, "type": type_}, count)
            for labels, analyzer in analyzers
            for (namespace, type_), count in analyzer.messages.items()
        ],
    )
    yield _Family(
        "skyfast_received_bytes_total",
        "counter",
        "Bytes of the messages received from the analyzer.",
        [(labels, analyzer.received_bytes) for labels, analyzer in analyzers],
    )
    yield _Family(
        "skyfast_last_message_timestamp_seconds",
        "gauge",
        "Unix time of the latest message from the analyzer; 0 before the first.",
        [(labels, analyzer.last_message_timestamp_s) for labels, analyzer in analyzers],
    )
    yield _by_labels_and_reason(
        "skyfast_message_errors_total",
        "Messages that were dropped whole.",
        [(labels, analyzer.errors) for labels, analyzer in analyzers],
    )
    yield _by_labels_and_reason(
        "skyfast_reconnects_total",
        "Subscriptions, or attempts at one, that ended.",
        [(labels, analyzer.reconnects) for labels, analyzer in analyzers],
    )
    yield _Family(
        "skyfast_flows_total",
        "counter",
        "Flow reports in the messages of the analyzer.",
        [(labels, analyzer.flows) for labels, analyzer in analyzers],
    )
    yield _by_labels_and_reason(
        "skyfast_flows_misdated_total",
        "Flow reports whose time is far from ours.",
        [(labels, analyzer.misdated) for labels, analyzer in analyzers],
    )
    yield _Family(
        "skyfast_reports_checked_total",
        "counter",
        "Flow reports checked for a missing one before them: a random sample.",
        [(labels, analyzer.reports_checked) for labels, analyzer in analyzers],
    )
    yield _by_labels_and_reason(
        "skyfast_report_gaps_total",
        "Checked flow reports with a missing one before them.",
        [(labels, analyzer.report_gaps) for labels, analyzer in analyzers],
    )


def _table_families(
    stats: Stats, table: TableCounts, views: Sequence[str], *, standard_names: bool
) -> Iterable[_Family]:
    yield _by_reason(
        "skyfast_flows_skipped_total",
        "Flow reports that changed nothing.",
        sums(stats.flows_skipped, table.skipped),
    )
    yield _Family(
        "skyfast_flows_filtered_total",
        "counter",
        "Flow reports dropped by filter.keep or filter.drop.",
        [({"rule": rule}, count) for rule, count in stats.flows_filtered.items()],
    )
    yield _Family(
        "skyfast_values_skipped_total",
        "counter",
        "Values left out of flow reports that were used, by field.",
        [
            ({"field": name}, count)
            for name, count in sorted(sums(stats.values_skipped, table.values_skipped).items())
        ],
    )
    yield _by_reason(
        "skyfast_flows_finished_total",
        "Flow reports that said why the flow had ended.",
        table.finished,
    )
    yield _single("skyfast_connections", "gauge", "Connections on the page.", table.connections)
    # OpenMetrics has no room for a gauge beside the counter skyfast_flows_total.
    flows = "skyfast_table_flows" if standard_names else "skyfast_flows"
    yield _single(flows, "gauge", "Flows the connections consist of.", table.flows)
    yield _single(
        "skyfast_dormant_flows",
        "gauge",
        "Flows that are not reported any more and whose totals are remembered.",
        table.dormant_flows,
    )
    yield _single(
        "skyfast_dormant_connections",
        "gauge",
        "Connections that expired and whose counters are remembered apart from their flows.",
        table.dormant_connections,
    )
    yield _single(
        "skyfast_connections_limit",
        "gauge",
        "Connections there is room for, and label tuples in each other view.",
        stats.max_connections,
    )
    yield _single("skyfast_flows_limit", "gauge", "Flows there is room for.", stats.max_flows)
    yield _single(
        "skyfast_flow_memory_seconds",
        "gauge",
        "How long the totals of a flow are remembered after it has left the page.",
        stats.flow_memory_s,
    )
    yield _single("skyfast_table_bytes", "gauge", "Memory of the table.", table.bytes)
    yield _single(
        "skyfast_connections_created_total",
        "counter",
        "Connections that were new.",
        table.created_total,
    )
    yield _single(
        "skyfast_connections_expired_total",
        "counter",
        "Connections that left because nothing was reported of them.",
        table.expired_total,
    )
    yield _single(
        "skyfast_connections_rejected_total",
        "counter",
        "Flow reports that found no room for a new connection.",
        table.rejected_total,
    )
    yield _single(
        "skyfast_connections_overflowed_total",
        "counter",
        "Flow reports added up in the connection of those that found no room.",
        table.overflowed_total,
    )
    yield _Family(
        "skyfast_view_connections",
        "gauge",
        "Label tuples on the page, by view beside the main one.",
        [
            ({"view": view}, count)
            for view, count in zip(views, table.view_connections, strict=True)
        ],
    )
    yield _Family(
        "skyfast_view_connections_rejected_total",
        "counter",
        "Flow reports that found no room for a new label tuple, by view beside the main one.",
        [
            ({"view": view}, count)
            for view, count in zip(views, table.view_rejected_totals, strict=True)
        ],
    )


def _clock_families(stats: Stats) -> Iterable[_Family]:
    yield _single(
        "skyfast_clock_held",
        "gauge",
        "Whether expiry is paused because reports may be missing.",
        stats.clock_held,
    )
    yield _single(
        "skyfast_clock_held_seconds_total",
        "counter",
        "Time for which expiry was paused because reports may be missing.",
        stats.clock_held_s,
    )


def _topology_families(topology: TopologyStats) -> Iterable[_Family]:
    yield _single("skyfast_interfaces", "gauge", "Interfaces on the page.", topology.interfaces)
    yield _Family(
        "skyfast_interfaces_skipped",
        "gauge",
        "Nodes of the topology's latest answer that are not on the page.",
        [({"reason": reason}, count) for reason, count in topology.skipped.items()],
    )
    yield _single(
        "skyfast_topology_answers_total",
        "counter",
        "Answers of the topology API that were used.",
        topology.answers,
    )
    yield _single(
        "skyfast_topology_last_answer_timestamp_seconds",
        "gauge",
        "Unix time of the topology's latest answer that was used; 0 before the first.",
        topology.last_answer_timestamp_s,
    )
    yield _by_reason(
        "skyfast_topology_errors_total",
        "Queries of an analyzer's topology API that gave nothing.",
        topology.errors,
    )


def _capture_families(captures: CaptureStats) -> Iterable[_Family]:
    yield _single("skyfast_captures", "gauge", "Captures on the page.", captures.captures)
    yield _by_reason(
        "skyfast_capture_reports_skipped_total",
        "Reports of a capture's statistics that were not used.",
        captures.skipped,
    )


def _config_families(config: ConfigStats) -> Iterable[_Family]:
    yield _single(
        "skyfast_config_last_reload_successful",
        "gauge",
        "Whether the latest reload of the configuration was successful.",
        config.last_reload_successful,
    )
    yield _single(
        "skyfast_config_last_reload_success_timestamp_seconds",
        "gauge",
        "Unix time of the latest reload that was successful; at first that of the start.",
        config.last_reload_success_timestamp_s,
    )
    yield _single(
        "skyfast_config_last_reload_failure_timestamp_seconds",
        "gauge",
        "Unix time of the latest failed reload; 0 if none failed.",
        config.last_failure.timestamp_s if config.last_failure else 0,
    )
    yield _Family(
        "skyfast_config_last_reload_changed",
        "gauge",
        "Keys changed by the latest successful reload.",
        [({"key": key}, 1) for key in config.last_reload_changed],
    )
    yield _by_reason(
        "skyfast_config_reload_failures_total",
        "Failed reloads of the configuration, by reason.",
        config.failures,
    )


def _scrape_families(scrape: ScrapeStats) -> Iterable[_Family]:
    yield _single(
        "skyfast_scrapes_total",
        "counter",
        "Pages with flows that were served whole: of /metrics and /metrics/flows.",
        scrape.scrapes,
    )
    yield _single(
        "skyfast_last_scrape_duration_seconds",
        "gauge",
        "How long the latest such page took, from the request to its last byte.",
        scrape.last_duration_s,
    )
    yield _single(
        "skyfast_last_scrape_bytes",
        "gauge",
        "Size of the latest such page before compression.",
        scrape.last_bytes,
    )
    yield _single(
        "skyfast_scrapes_rejected_total",
        "counter",
        "Pages refused with status 503 because too many were being served.",
        scrape.rejected,
    )
    yield _by_reason(
        "skyfast_scrapes_failed_total", "Pages that were begun and cut.", scrape.failures
    )
    yield _single(
        "skyfast_http_connections_rejected_total",
        "counter",
        "HTTP connections closed because too many were open.",
        scrape.connections_rejected,
    )
    yield _by_reason(
        "skyfast_tls_handshakes_failed_total",
        "TLS handshakes of HTTP clients that failed.",
        scrape.handshakes_failed,
    )


def _process_families() -> Iterable[_Family]:
    """Yield what client libraries show of a process, under the names they use."""
    yield _single(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        time.process_time(),
    )
    yield _single(
        "process_max_fds",
        "gauge",
        "Maximum number of open file descriptors.",
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )
    try:
        open_fds = process.open_fds()
        virtual_bytes, resident_bytes = process.memory_bytes()
        start_time_s = process.start_time_s()
    except OSError:
        return
    yield _single("process_open_fds", "gauge", "Number of open file descriptors.", open_fds)
    yield _single(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        virtual_bytes,
    )
    yield _single(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        resident_bytes,
    )
    yield _single(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        start_time_s,
    )


def _single(name: str, kind: str, text: str, value: float) -> _Family:
    return _Family(name, kind, text, [({}, value)])


def _by_reason(name: str, text: str, counts: Mapping[str, int]) -> _Family:
    return _by_labels_and_reason(name, text, [({}, counts)])


def _by_labels_and_reason(
    name: str, text: str, counted: Iterable[tuple[Mapping[str, str], Mapping[str, int]]]
) -> _Family:
    samples = [
        ({**labels, "reason": reason}, count)
        for labels, counts in counted
        for reason, count in counts.items()
    ]
    return _Family(name, "counter", text, samples)
