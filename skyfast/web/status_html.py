"""The status page as HTML.

The page is complete without its script. The script updates elements of the page with values from
``/api/status`` and ``/api/top``. In each of these elements, ``data-key`` is the path of the value
in the JSON, and ``data-format`` is the format of the value.
"""

from dataclasses import replace
from html import escape
from string import Template
from typing import Final

import msgspec

from skyfast.web import busiest_html, html, tiles_html
from skyfast.web.elements_html import Elements, HtmlColumn, Limit
from skyfast.web.forecast import size
from skyfast.web.help_html import link
from skyfast.web.status_report import StatusReport
from skyfast.web.tiles_html import Tile
from skyfast.web.top import MAX_FILTER_CHARS, Ranking, RankingQuery, Top

DEFAULT_ROWS: Final = 20

_PAGE = Template(html.read("status.html"))

_ANALYZERS = (
    HtmlColumn("name", "text", "analyzer"),
    HtmlColumn("up", "state", "state"),
    HtmlColumn("since_timestamp_seconds", "since", "since"),
    HtmlColumn("flows_per_second", "tenths", "reports/s"),
    HtmlColumn("share", "percent", link("analyzers", "share"), bar="share"),
    HtmlColumn("lag_seconds", "seconds", link("lag", "lag")),
    HtmlColumn("data_age_seconds", "seconds", link("lag", "age of data")),
    HtmlColumn("lost_ratio", "percent", link("lost", "lost")),
    HtmlColumn("reconnects_total", "count", "reconnects"),
    HtmlColumn("last_message_timestamp_seconds", "ago", "last message"),
    HtmlColumn("last_error", "error", "last error"),
)

_INTERFACES = (
    HtmlColumn("labels.interface_name", "text", "interface"),
    HtmlColumn("labels.host", "text", "host"),
    HtmlColumn("owner", "text", "pod, container or netns"),
    HtmlColumn("labels.interface_type", "text", "type"),
    HtmlColumn("labels.ipv4", "text", "address"),
    HtmlColumn("received_bytes", "bytes", "received"),
    HtmlColumn("transmitted_bytes", "bytes", "sent"),
    HtmlColumn("dropped_packets", "count", "dropped"),
    HtmlColumn("errors", "count", "errors"),
)

_CAPTURES = (
    HtmlColumn("capture_id", "text", "capture"),
    HtmlColumn("points", "points", "captures at"),
    HtmlColumn("packets_received", "number", "packets"),
    HtmlColumn("packets_dropped", "number", "dropped"),
    HtmlColumn("flows", "count", "flows"),
    HtmlColumn("flows_dropped", "count", "flows dropped"),
    HtmlColumn("kernel_flows_dropped", "count", "dropped by kernel"),
)


_BOUNDS = (
    HtmlColumn("min_bytes", "bytes", "min_bytes"),
    HtmlColumn("connections", "count", "connections"),
    HtmlColumn("series", "count", "series"),
    HtmlColumn("bytes", "bytes", "bytes"),
    HtmlColumn("bytes_share", "percent", "of all bytes"),
)


_TILES = (
    Tile("Connections", "table.connections", "count", "connections"),
    Tile("Flow reports/s", "flows_per_second", "tenths", "flows_per_second"),
    Tile(
        "Scrape time", "scrapes.last_duration_seconds", "seconds", "scrape_duration_seconds", True
    ),
    Tile("Scrape size", "scrapes.last_bytes", "bytes", "scrape_bytes", True),
)

_LIMITS = (
    Limit("connections", "Connections", ("table.connections",), "table.connections_limit"),
    Limit("flows", "Flows", ("table.flows", "table.dormant_flows"), "table.flows_limit"),
    Limit(
        "series",
        "Series (upper bound)",
        ("table.series_at_most",),
        "table.series_limit",
    ),
)

_FIGURES = (
    ("prometheus", "expired", "expired series in Prometheus (upper bound)", "prometheus"),
    ("prometheus", "memory-range", "estimated memory in Prometheus", "prometheus"),
    ("table.bytes", "bytes", "table memory", "memory"),
    ("table.created_total", "count", "connections created", "churn"),
    ("table.expired_total", "count", "connections expired", "churn"),
    ("table.rejected_total", "count", "reports rejected because the table was full", "full"),
    ("table.overflowed_total", "count", "reports added to the overflow connection", "full"),
    ("table.filtered_total", "count", "reports dropped by filter rules", "filtered"),
    ("table.reports_checked_total", "count", "checks for lost reports", "lost"),
    ("table.reports_lost_total", "count", "checks that found a lost report", "lost"),
    ("scrapes.total", "count", "scrapes completed", "scrapes"),
    ("scrapes.failed_total", "count", "scrapes not completed", "scrapes"),
    ("scrapes.rejected_total", "count", "scrapes rejected", "scrapes"),
)

_IGNORED = (
    ("table.skipped_expected_total", "reasons", "ignored reports (normal)", "ignored"),
    ("table.skipped_unexpected_total", "reasons", "ignored reports (problems)", "ignored"),
)


def as_html(report: StatusReport, ranking: Ranking, query: RankingQuery, top: Top | None) -> str:
    """Return the page. ``top`` is None if the ranking timed out or raised BusyError."""
    elements = Elements(msgspec.to_builtins(report), report.timestamp_seconds, query)
    body = _PAGE.substitute(
        header=_header(elements),
        made=escape(_page_shape(report, ranking)),
        notices="".join(
            f'<li class="{notice.severity}">{escape(notice.text)}</li>' for notice in report.notices
        ),
        tiles="".join(tiles_html.as_html(tile, elements, report.history) for tile in _TILES),
        analyzers=elements.table("analyzers", _ANALYZERS),
        choices=busiest_html.ranking_links(ranking, query),
        groupings=busiest_html.grouping_links(ranking, query),
        by=escape(query.by),
        view=escape(query.view),
        filter=escape(query.filter),
        max_filter=MAX_FILTER_CHARS,
        groups=busiest_html.group_options(ranking, query),
        counts=busiest_html.row_options(query.n),
        note=busiest_html.note(ranking, query, top) if top else busiest_html.BUSY,
        histograms=busiest_html.histograms(ranking, query),
        top=busiest_html.table(
            ranking, query, top, elements, has_bounds=_has_bounds(report, query.view)
        ),
        interfaces_note=_interfaces_note(report, elements),
        names_note=_names_note(report, elements) + _own_names_note(report, elements),
        interfaces=elements.table(
            "interfaces.busiest",
            [column for column in _INTERFACES if column.key != "owner" or report.names],
        ),
        captures_note=f"{elements.value('captures.count', 'count')} reported by agents",
        captures=elements.table("captures.first", _CAPTURES),
        demo=_replay_note(report),
        forecast=_forecast(report, elements),
        limits="".join(map(elements.limit, _LIMITS)),
        table=elements.figures(_FIGURES),
        ignored=elements.figures(_IGNORED),
        reload_state=elements.value("reload", "reload-state"),
        source=elements.value("configuration_source", "text", tag="code"),
        reloaded=elements.value("reload", "reload"),
        reload_error=elements.value("reload.last_error", "last-error"),
        configuration=escape(report.configuration),
    )
    return html.document(title=escape(_title_of(report)), body=body, script="status.js")


def _title_of(report: StatusReport) -> str:
    """Return the page's title. It shows the state even while the tab is in the background."""
    warning = "▲ " if report.notices else ""
    health = "" if report.health.state == "ready" else f"{report.health.text} · "
    return f"{warning}{health}skyfast · {report.host_id}"


def _header(elements: Elements) -> str:
    return html.header(
        "./",
        f"{elements.value('health', 'health')}\n"
        f"<p>host_id {elements.value('host_id', 'text', tag='strong')}"
        f" · version {elements.value('version', 'text')}"
        f" · up {elements.value('uptime_seconds', 'duration')}"
        f" · {elements.value('resident_bytes', 'bytes')} of memory</p>",
    )


def _replay_note(report: StatusReport) -> str:
    if report.replay is None:
        return ""
    if report.replay.demo:
        text = (
            "<strong>Demo:</strong> skyfast replays a packaged recording in a loop."
            " This is not live traffic."
        )
    else:
        names = ", ".join(report.replay.recordings)
        text = f"<strong>Replay</strong> of {escape(names)}. This is not live traffic."
    return f'<p class="lead replay">{text}</p>\n'


def _page_shape(report: StatusReport, ranking: Ranking) -> str:
    """Return the structure of the page as JSON. If it changes, the script reloads the page."""
    # Use the labels and metrics of `ranking`, as the page does. During a reload, `report` may
    # belong to another configuration.
    parts = (
        report.version,
        ranking.first_view.labels,
        ranking.first_view.metrics,
        list(ranking.first_view.keys),
        report.interfaces.enabled,
        report.names is not None,
        report.own_names is not None,
        _bounds(report),
        report.views,
    )
    return msgspec.json.encode(parts).decode()


def _has_bounds(report: StatusReport, prefix: str) -> bool:
    """Return whether the view can hide rows. An empty ``prefix`` means the first view."""
    if not prefix:
        return any(_bounds(report) or ())
    # During a reload, the report may not contain the view.
    views = [view for view in report.views if view.prefix == prefix]
    return any(view.min_bytes or view.min_packets for view in views)


def _bounds(report: StatusReport) -> tuple[int, int] | None:
    """Return the bounds of the first view, or None if the first view does not count bytes."""
    forecast = report.forecast
    return None if forecast is None else (forecast.current.min_bytes, forecast.min_packets)


def _forecast(report: StatusReport, elements: Elements) -> str:
    bounds = _bounds(report)
    if bounds is None:
        return ""
    min_bytes, min_packets = bounds
    configured = [
        *([f"min_bytes {size(min_bytes)}"] if min_bytes else ()),
        *([f"min_packets {min_packets:,}"] if min_packets else ()),
    ]
    note = f"; configured bounds: {' and '.join(configured)}" if configured else ""
    others = ""
    if report.views:
        others = f"; the views add {elements.value('forecast.other_series', 'count')} series"
    columns = [replace(_BOUNDS[0], configured=min_bytes), *_BOUNDS[1:]]
    return (
        '<section class="panel" aria-labelledby="bounds">\n'
        '<div class="head"><h2 id="bounds">Series of the connections</h2><p>'
        f"Exported: {elements.value('forecast.current.series', 'count')} of the"
        f" {elements.value('forecast.unbounded.series', 'count')} series of all connections, with"
        f" {elements.value('forecast.current.bytes_share', 'percent')} of the bytes"
        f"{others}{note}</p></div>\n"
        f"<p>{elements.value('forecast.text', 'text')}"
        " The table shows what would be exported with other values of min_bytes:</p>\n"
        f"{elements.table('forecast.bounds', columns)}</section>\n"
    )


def _interfaces_note(report: StatusReport, elements: Elements) -> str:
    if not report.interfaces.enabled:
        return "disabled by the configuration"
    last_response = elements.value("interfaces.last_answer_timestamp_seconds", "ago")
    last_error = elements.value("interfaces.last_error", "last-error")
    return (
        f"{elements.value('interfaces.count', 'count')} in the topology,"
        f" last response {last_response}{last_error}"
    )


def _names_note(report: StatusReport, elements: Elements) -> str:
    if report.names is None:
        return ""
    # The last error is shown only once, because all topology queries share one last error.
    last_error = elements.value("interfaces.last_error", "last-error")
    return (
        f"<p>named from the topology: {elements.value('names.addresses', 'count')} addresses"
        f" ({elements.value('names.ambiguous', 'count')} of them ambiguous),"
        f" {elements.value('names.capture_points', 'count')} capture points;"
        f" last read {elements.value('names.last_reading_timestamp_seconds', 'ago')}"
        f"{'' if report.interfaces.enabled else last_error}</p>\n"
    )


def _own_names_note(report: StatusReport, elements: Elements) -> str:
    if report.own_names is None:
        return ""
    return (
        "<p>own names (keys 'names' and 'names_file'):"
        f" {elements.value('own_names.entries', 'count')} entries;"
        f" read {elements.value('own_names.last_load_success_timestamp_seconds', 'ago')}"
        f"{elements.value('own_names.last_error', 'last-error')}</p>\n"
    )
