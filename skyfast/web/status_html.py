"""The status page as HTML.

The page is complete without its script, which updates the same elements from ``/api/status`` and
``/api/top``. Only this module defines the elements: ``data-key`` is the path of the value in the
JSON, and ``data-format`` its format. The formats are implemented here and in ``data/status.js``,
and a test compares their output.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from string import Template
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from skyfast.web import html
from skyfast.web.forecast import size
from skyfast.web.formats import COLOURS, STATES, TEXTS, count, duration, formatted
from skyfast.web.help_html import link
from skyfast.web.history import INTERVAL_S, MAX_GAP_S, SAMPLES, Series
from skyfast.web.notices import NEARLY_FULL
from skyfast.web.status import StatusReport
from skyfast.web.top import (
    MAX_FILTER_CHARS,
    PER_SECOND,
    REPORT_INTERVAL_S,
    Metric,
    Query,
    Ranking,
    RankingKey,
    Top,
    Unit,
)

ROWS: Final = (20, 50, 100, 500)
"""The selectable numbers of connections."""

DEFAULT_ROWS: Final = 20

_UNIT_FORMATS: Final[dict[Unit, str]] = {
    "bytes": "bytes",
    "seconds": "seconds",
    "nanoseconds": "nanoseconds",
    "timestamp": "timestamp",
    "": "number",
}

_PAGE = Template(html.read("status.html"))

_WIDTH: Final = 600
_HEIGHT: Final = 40
"""The size of a sparkline's coordinate system."""


# Elements ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _HtmlColumn:
    """A column of a table: the path of its values in a row, their format, and the header.

    ``head`` and ``attributes`` are HTML of the header cell. If ``name`` is set, it is a label whose
    values can have names. A name is shown beside the value if ``is_beside``, and otherwise instead
    of the value. ``other`` is the key of a text that replaces the value, unless the text is None.
    ``bar`` is the key of the length of a bar in the background. If ``filters``, the value is a link
    that filters by it.
    """

    key: str
    format: str
    head: str
    attributes: str = ""
    name: str = ""
    is_beside: bool = False
    other: str = ""
    bar: str = ""
    filters: bool = False


_ANALYZERS = (
    _HtmlColumn("name", "text", "analyzer", other="recorded_name"),
    _HtmlColumn("up", "state", "state"),
    _HtmlColumn("since_timestamp_seconds", "since", "since"),
    _HtmlColumn("flows_per_second", "number", "reports/s"),
    _HtmlColumn("share", "percent", link("analyzers", "share"), bar="share"),
    _HtmlColumn("lag_seconds", "seconds", link("lag", "lag")),
    _HtmlColumn("data_age_seconds", "seconds", link("lag", "age of data")),
    _HtmlColumn("lost_ratio", "percent", link("lost", "lost")),
    _HtmlColumn("reconnects_total", "count", "reconnects"),
    _HtmlColumn("last_message_timestamp_seconds", "ago", "last message"),
    _HtmlColumn("last_error", "error", "last error"),
)

_INTERFACES = (
    _HtmlColumn("labels.interface_name", "text", "interface"),
    _HtmlColumn("labels.host", "text", "host"),
    _HtmlColumn("owner", "text", "pod, container or netns"),
    _HtmlColumn("labels.interface_type", "text", "type"),
    _HtmlColumn("labels.ipv4", "text", "address"),
    _HtmlColumn("received_bytes", "bytes", "received"),
    _HtmlColumn("transmitted_bytes", "bytes", "sent"),
    _HtmlColumn("dropped_packets", "count", "dropped"),
    _HtmlColumn("errors", "count", "errors"),
)

_CAPTURES = (
    _HtmlColumn("capture_id", "text", "capture"),
    _HtmlColumn("points", "points", "captures at"),
    _HtmlColumn("packets_received", "number", "packets"),
    _HtmlColumn("packets_dropped", "number", "dropped"),
    _HtmlColumn("flows", "count", "flows"),
    _HtmlColumn("flows_dropped", "count", "flows dropped"),
    _HtmlColumn("kernel_flows_dropped", "count", "dropped by kernel"),
)


_BOUNDS = (
    _HtmlColumn("min_bytes", "bytes", "min_bytes"),
    _HtmlColumn("connections", "count", "connections"),
    _HtmlColumn("series", "count", "series"),
    _HtmlColumn("bytes", "bytes", "bytes"),
    _HtmlColumn("bytes_share", "percent", "of all bytes"),
)


@dataclass(frozen=True, slots=True)
class _Tile:
    """A current value and its last ten minutes, as a line or as bars."""

    title: str
    key: str
    format: str
    series: str
    is_bars: bool = False


@dataclass(frozen=True, slots=True)
class _Limit:
    """A bar of values that share a limit. ``anchor`` is the explanation on ``/help``."""

    anchor: str
    title: str
    keys: tuple[str, ...]
    limit: str


_TILES = (
    _Tile("Connections", "table.connections", "count", "connections"),
    _Tile("Flow reports/s", "flows_per_second", "number", "flows_per_second"),
    _Tile(
        "Scrape time", "scrapes.last_duration_seconds", "seconds", "scrape_duration_seconds", True
    ),
    _Tile("Scrape size", "scrapes.last_bytes", "bytes", "scrape_bytes", True),
)

_LIMITS = (
    _Limit("connections", "Connections", ("table.connections",), "table.connections_limit"),
    _Limit("flows", "Flows", ("table.flows", "table.dormant_flows"), "table.flows_limit"),
    _Limit("series", "Series, at most", ("table.series_at_most",), "table.series_limit"),
)

_HIDDEN: Final = "table.hidden_connections"

_FIGURES = (
    ("prometheus", "created", "series created, at most", "prometheus"),
    ("prometheus", "memory-range", "memory in Prometheus", "prometheus"),
    ("table.bytes", "bytes", "table memory", "memory"),
    ("table.created_total", "count", "connections created", "churn"),
    ("table.expired_total", "count", "connections expired", "churn"),
    ("table.rejected_total", "count", "reports lost, because the table was full", "full"),
    ("table.overflowed_total", "count", "reports in the overflow connection", "full"),
    ("table.filtered_total", "count", "reports dropped by filter rules", "filtered"),
    ("table.reports_checked_total", "count", "reports checked for loss", "lost"),
    ("table.reports_lost_total", "count", "of these, previous report lost", "lost"),
    ("scrapes.total", "count", "scrapes completed", "scrapes"),
    ("scrapes.failed_total", "count", "scrapes not completed", "scrapes"),
    ("scrapes.rejected_total", "count", "scrapes rejected", "scrapes"),
)

_IGNORED = (
    ("table.skipped_expected_total", "reasons", "ignored reports (normal)", "ignored"),
    ("table.skipped_unexpected_total", "reasons", "ignored reports (problems)", "ignored"),
)

_DIRECTIONS = (
    '<span aria-hidden="true">→</span><span class="unseen">from initiator to target</span>',
    '<span aria-hidden="true">←</span><span class="unseen">from target to initiator</span>',
)

_NO_RATES: Final = (
    "No rates yet: they need new reports, and each connection is reported about once a minute."
)

_BUSY: Final = "Too many rankings are in progress: try again."


def as_html(report: StatusReport, ranking: Ranking, query: Query, top: Top | None) -> str:
    """Return the page. ``top`` is the result of ``query``, or None after a timeout."""
    elements = _Elements(msgspec.to_builtins(report), report.timestamp_seconds, query)
    body = _PAGE.substitute(
        header=_header(elements),
        made=escape(_page_shape(report, ranking)),
        notices="".join(
            f'<li class="{notice.severity}">{escape(notice.text)}</li>' for notice in report.notices
        ),
        tiles="".join(_tile(tile, elements, report.history) for tile in _TILES),
        analyzers=elements.table("analyzers", _ANALYZERS),
        choices="\n".join(_ranking_link(key, ranking, query) for key in ranking.keys.values()),
        by=escape(query.by),
        filter=escape(query.filter),
        max_filter=MAX_FILTER_CHARS,
        groups=_group_options(ranking, query),
        counts=_row_options(query.n),
        note=_note(ranking, query, top) if top else _BUSY,
        top=_top(ranking, query, top, elements),
        interfaces_note=_interfaces_note(report, elements),
        names_note=_names_note(report, elements) + _own_names_note(report, elements),
        interfaces=elements.table(
            "interfaces.busiest",
            [column for column in _INTERFACES if column.key != "owner" or report.names],
        ),
        captures_note=f"{elements.place('captures.count', 'count')} reported by agents",
        captures=elements.table("captures.first", _CAPTURES),
        demo=_replay_note(report),
        forecast=_forecast(report, elements),
        limits="".join(map(elements.limit, _LIMITS)),
        table=elements.figures(_FIGURES),
        ignored=elements.figures(_IGNORED),
        reload_state=elements.place("reload", "reload-state"),
        source=elements.place("configuration_source", "text", tag="code"),
        reloaded=elements.place("reload", "reload"),
        reload_error=elements.place("reload.last_error", "last-error"),
        configuration=escape(report.configuration),
    )
    return html.document(title=escape(_title_of(report)), body=body, script="status.js")


def _title_of(report: StatusReport) -> str:
    """Return the page's title, which shows the state in a background tab."""
    warning = "▲ " if report.notices else ""
    health = "" if report.health.state == "ready" else f"{report.health.text} · "
    return f"{warning}{health}skyfast · {report.host_id}"


def _header(elements: "_Elements") -> str:
    return html.header(
        "./",
        f"{elements.place('health', 'health')}\n"
        f"<p>{elements.place('host_id', 'text', tag='strong')}"
        f" · version {elements.place('version', 'text')}"
        f" · up {elements.place('uptime_seconds', 'duration')}"
        f" · {elements.place('resident_bytes', 'bytes')} of memory</p>",
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
    # Use the ranking's labels and metrics: during a reload, the report may be of another
    # configuration.
    parts = (
        report.version,
        ranking.labels,
        ranking.metrics,
        list(ranking.keys),
        report.interfaces.enabled,
        report.names is not None,
        report.own_names is not None,
        _bounds(report),
    )
    return msgspec.json.encode(parts).decode()


def _bounds(report: StatusReport) -> tuple[int, int] | None:
    """Return the configured ``min_bytes`` and ``min_packets``; None if no bytes are counted."""
    forecast = report.forecast
    return None if forecast is None else (forecast.current.min_bytes, forecast.min_packets)


class _Elements:
    """Renders values by their path, as elements that the script can update."""

    def __init__(self, tree: Any, now_s: float, query: Query) -> None:
        self._tree = tree
        self._now_s = now_s
        self._query = query

    def place(self, key: str, format_: str, *, tag: str = "span") -> str:
        """Return an element with the value."""
        value = _at(self._tree, key)
        state = f' class="{_class(value, format_)}"' if format_ in STATES else ""
        text = escape(formatted(value, format_, self._now_s))
        return f'<{tag}{state} data-key="{key}" data-format="{format_}">{text}</{tag}>'

    def hidden(self, key: str) -> str:
        """Return how many of the connections are hidden; empty without bounds or for other keys."""
        if key != "table.connections" or _at(self._tree, _HIDDEN) is None:
            return ""
        return f", <small>{self.place(_HIDDEN, 'count')} hidden</small>"

    def limit(self, limit: _Limit) -> str:
        """Return the name of a limit, a bar, and its values."""
        values = [_at(self._tree, key) for key in limit.keys]
        maximum = _at(self._tree, limit.limit)
        shares = [value / maximum if maximum else 0.0 for value in values]
        rects, start = [], 0.0
        for share in shares:
            width = min(share, 1 - start)
            rects.append(f'<rect height="100%" x="{100 * start:.1f}%" width="{100 * width:.1f}%"/>')
            start += width
        used = shares[0]
        colour = "bad" if used >= 1 else "warn" if used >= NEARLY_FULL else "good"
        parts = [self.place(key, "count") for key in limit.keys]
        shown = " and ".join(parts) if len(parts) == 1 else f"{parts[0]} and {parts[1]} dormant"
        return (
            f"<div><dt>{link(limit.anchor, limit.title)}</dt>"
            f"<dd>{shown} of {self.place(limit.limit, 'count')}{self.hidden(limit.keys[0])}</dd>"
            f'<svg class="{colour}" aria-hidden="true" data-shares="{" ".join(limit.keys)}"'
            f' data-limit="{limit.limit}">{"".join(rects)}</svg></div>\n'
        )

    def figures(self, figures: Iterable[tuple[str, str, str, str]]) -> str:
        """Return the names of figures, with links to their explanations, and their values."""
        return "".join(
            f"<div><dt>{link(anchor, text)}</dt><dd>{self.place(key, format_)}</dd></div>\n"
            for key, format_, text, anchor in figures
        )

    def _filter(self, text: str) -> str:
        return _link(self._query.by, replace(self._query, filter=text[:MAX_FILTER_CHARS]))

    def table(self, key: str, columns: Iterable[_HtmlColumn]) -> str:
        """Return the list as a table."""
        return self.rows(key, columns, _at(self._tree, key))

    def rows(self, key: str, columns: Iterable[_HtmlColumn], rows: Sequence[Any]) -> str:
        """Return a table of ``rows``, hidden if there are none."""
        columns = tuple(columns)
        heads = "".join(
            f'<th scope="col" class="{_side(column.format)}" data-key="{column.key}"'
            f' data-format="{column.format}"{_attributes(column)}{column.attributes}>'
            f"{column.head}</th>"
            for column in columns
        )
        lines = "".join(
            f"<tr>{''.join(self._cell(column, row) for column in columns)}</tr>\n" for row in rows
        )
        return (
            f'<div class="scroll"{"" if rows else " hidden"}><table data-rows="{key}">\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n"
        )

    def _cell(self, column: _HtmlColumn, row: Any) -> str:
        value = _at(row, column.key)
        class_ = _class(value, column.format)
        text = escape(formatted(value, column.format, self._now_s))
        if column.bar:
            share = _at(row, column.bar) or 0
            return f'<td class="{class_} share">{html.bar(share)}<span>{text}</span></td>'
        if column.format == "points":
            title = "&#10;".join(escape(_full_point(point)) for point in value)
            return f'<td class="{class_}" title="{title}">{text}</td>'
        name = escape(row["names"].get(column.name, "")) if column.name else ""
        if column.other and row[column.other] is not None:
            name = escape(row[column.other])
        title = f' title="{text}{f" ({name})" if name else ""}"' if column.format == "text" else ""
        if column.is_beside:
            class_ += " named"
        shown = name if name and not column.is_beside else text
        if column.filters and value:
            shown = f'<a href="{self._filter(value)}" data-filter="{escape(value)}">{shown}</a>'
        if name and column.is_beside:
            shown += f" <small>{name}</small>"
        return f'<td class="{class_}"{title}>{shown}</td>'


def _attributes(column: _HtmlColumn) -> str:
    attributes = {
        "name": column.name,
        "beside": column.is_beside,
        "other": column.other,
        "bar": column.bar,
        "filters": column.filters,
    }
    return "".join(
        f" data-{name}" if value is True else f' data-{name}="{value}"'
        for name, value in attributes.items()
        if value
    )


def _full_point(value: Any) -> str:
    return f"{value['node_tid']} ({value['name']})" if value["name"] else str(value["node_tid"])


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[int(name)] if isinstance(tree, list | tuple) else tree[name]
    return tree


def _class(value: Any, format_: str) -> str:
    if format_ in STATES:
        return f"state {_colour(value, format_)}"
    return format_ if format_ in TEXTS else "number"


def _colour(value: Any, format_: str) -> str:
    if format_ == "health":
        return COLOURS[value["state"]]
    if format_ == "reload-state":
        value = value["successful"]
    return "good" if value else "bad"


def _side(format_: str) -> str:
    return "text" if format_ in TEXTS else "number"


# Parts -------------------------------------------------------------------------------------------


def _tile(tile: _Tile, elements: _Elements, history: Series) -> str:
    values: list[float | None] = getattr(history, tile.series)
    highest = max((value for value in values if value is not None), default=None)
    area, line = (_bars if tile.is_bars else _line)(history.age_seconds, values)
    return (
        f"<li><h2>{tile.title}</h2>{elements.place(tile.key, tile.format, tag='b')}"
        f"{elements.hidden(tile.key)}\n"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{tile.title}, the last ten minutes" data-series="{tile.series}">'
        f'<path class="gap" d="{_gaps(history.age_seconds)}"/>'
        f'<path class="area" d="{area}"/>'
        f'<path class="line{" bars" if tile.is_bars else ""}" d="{line}"/></svg>\n'
        f'<p class="foot"><span>10 minutes</span><span>highest <span'
        f' data-highest="{tile.series}" data-format="{tile.format}">'
        f"{formatted(highest, tile.format, 0)}</span></span></p></li>\n"
    )


def _x(age_s: float) -> str:
    return f"{max(_WIDTH - age_s * _WIDTH / (INTERVAL_S * SAMPLES), 0):.1f}"


def _gaps(ages_s: Sequence[float]) -> str:
    """Return the areas in which there are no samples because the process was paused."""
    return "".join(
        f"M{_x(before_s)} 0H{_x(after_s)}V{_HEIGHT}H{_x(before_s)}Z"
        for before_s, after_s in pairwise(ages_s)
        if before_s - after_s > MAX_GAP_S
    )


def _segments(
    ages_s: Sequence[float], values: Sequence[float | None]
) -> list[list[tuple[str, str]]]:
    """Return the coordinates of the values, in segments separated by gaps over `MAX_GAP_S`.

    The x axis is the last ten minutes, the y axis is from 0 to the highest value.
    """
    highest = max((value for value in values if value is not None), default=0) or 1
    segments: list[list[tuple[str, str]]] = []
    before_s = math.inf
    for age_s, value in zip(ages_s, values, strict=True):
        if value is None:
            continue
        if before_s - age_s > MAX_GAP_S:
            segments.append([])
        before_s = age_s
        segments[-1].append((_x(age_s), f"{_HEIGHT - value * _HEIGHT / highest:.1f}"))
    return segments


def _line(ages_s: Sequence[float], values: Sequence[float | None]) -> tuple[str, str]:
    area, line = "", ""
    for segment in _segments(ages_s, values):
        path = "L".join(f"{x} {y}" for x, y in segment)
        area += f"M{segment[0][0]} {_HEIGHT}L{path}L{segment[-1][0]} {_HEIGHT}Z"
        line += f"M{path}"
    return area, line


def _bars(ages_s: Sequence[float], values: Sequence[float | None]) -> tuple[str, str]:
    points = [point for segment in _segments(ages_s, values) for point in segment]
    return "", "".join(f"M{x} {_HEIGHT}V{y}" for x, y in points)


def _link(by: str, query: Query) -> str:
    parameters = {"by": by, "n": query.n, "filter": query.filter}
    if query.group:
        parameters["group"] = ",".join(query.group)
    return escape("?" + urlencode(parameters, safe=","))


def _title(key: RankingKey) -> str:
    name = key.name.removesuffix(PER_SECOND) + "/s" if key.is_rate else key.name
    return escape(name.replace("_", " "))


def _format(metric: Metric, *, is_rate: bool = False) -> str:
    return _UNIT_FORMATS[metric.unit] + ("-rate" if is_rate else "")


def _ranking_link(key: RankingKey, ranking: Ranking, query: Query) -> str:
    format_ = _format(ranking.metrics[key.family], is_rate=key.is_rate)
    current = ' aria-current="true"' if key.name == query.by else ""
    return (
        f'<a href="{_link(key.name, query)}" data-by="{escape(key.name)}"'
        f' data-format="{format_}"{current}>{_title(key)}</a>'
    )


def _row_options(chosen: int) -> str:
    return "".join(
        f"<option{' selected' if n == chosen else ''}>{n}</option>" for n in sorted({*ROWS, chosen})
    )


def _group_options(ranking: Ranking, query: Query) -> str:
    """Return an option for each label, and for each pair of labels of the two ends."""
    groups: list[tuple[str, ...]] = [()]
    for label in ranking.labels:
        target = label.replace("initiator_", "target_", 1)
        if target != label and target in ranking.labels:
            groups.append((label, target))
    groups += [(label,) for label in ranking.labels]
    if query.group not in groups:
        groups.append(query.group)
    return "".join(
        f'<option value="{escape(",".join(group))}"'
        f"{' selected' if group == query.group else ''}>{_group_title(group)}</option>"
        for group in groups
    )


def _group_title(group: tuple[str, ...]) -> str:
    return escape(" + ".join(label.replace("_", " ") for label in group)) or "nothing"


def _note(ranking: Ranking, query: Query, top: Top) -> str:
    is_new = top.window_seconds is not None and top.window_seconds < REPORT_INTERVAL_S
    if is_new and not top.entries:
        return _NO_RATES
    # This total is from the same scan as the rows; the total shown above may be newer.
    total = top.connections if top.groups is None else top.groups
    noun = "connection" if top.groups is None else "group"
    text = f"{count(len(top.entries))} of {count(total)} {noun}{'' if total == 1 else 's'}"
    if top.other is not None and top.other.connections:
        key = ranking.keys[query.by]
        format_ = _format(ranking.metrics[key.family], is_rate=key.is_rate)
        others = f"{count(top.other.connections)} other connections"
        text += f"; {others}: {formatted(top.other.rank, format_, 0)}"
    if top.approximate:
        text += "; too many groups: sums are approximate"
    if top.window_seconds is not None:
        text += (
            f", by increase over the last {duration(top.window_seconds)};"
            " each connection is reported about once a minute"
        )
    return text


def _top(ranking: Ranking, query: Query, top: Top | None, elements: _Elements) -> str:
    key = ranking.keys[query.by]
    columns = [
        _HtmlColumn(
            "rank",
            _format(ranking.metrics[key.family], is_rate=key.is_rate),
            _title(key),
            ' aria-sort="descending"',
            bar="share",
        ),
        *(_label_column(label, ranking) for label in query.group or ranking.labels),
        *([_HtmlColumn("connections", "count", "connections")] if query.group else []),
        *(column for metric in ranking.metrics for column in _value_columns(metric, query)),
    ]
    entries = top.entries if top else []
    rows = [
        {
            "rank": entry.rank,
            "share": entry.rank / (entries[0].rank or 1),
            "labels": entry.labels,
            "names": entry.names,
            "connections": entry.connections,
            "values": entry.values,
        }
        for entry in entries
    ]
    return elements.rows("top", columns, rows)


def _label_column(label: str, ranking: Ranking) -> _HtmlColumn:
    return _HtmlColumn(
        f"labels.{label}",
        "text",
        label.replace("_", " "),
        name=label if label in ranking.addresses | ranking.nodes else "",
        is_beside=label in ranking.addresses,
        filters=True,
    )


def _value_columns(metric: Metric, query: Query) -> Iterable[_HtmlColumn]:
    name = escape(metric.name.replace("_", " "))
    link = f'<a href="{_link(metric.name, query)}" data-by="{escape(metric.name)}">{name}</a>'
    for index in range(metric.directions):
        arrow = f" {_DIRECTIONS[index]}" if metric.directions == 2 else ""
        yield _HtmlColumn(f"values.{metric.name}.{index}", _format(metric), link + arrow)


def _forecast(report: StatusReport, elements: _Elements) -> str:
    """Return the section about bounds; empty if the connections do not count bytes."""
    bounds = _bounds(report)
    if bounds is None:
        return ""
    min_bytes, min_packets = bounds
    configured = [
        *([f"min_bytes {size(min_bytes)}"] if min_bytes else ()),
        *([f"min_packets {min_packets:,}"] if min_packets else ()),
    ]
    note = f"; configured: {' or '.join(configured)}" if configured else ""
    return (
        '<section class="panel" aria-labelledby="bounds">\n'
        '<div class="head"><h2 id="bounds">Series of the connections</h2><p>'
        f"{elements.place('forecast.current.series', 'count')} of"
        f" {elements.place('forecast.unbounded.series', 'count')} series, with"
        f" {elements.place('forecast.current.bytes_share', 'percent')} of the bytes"
        f"{note}</p></div>\n"
        f"<p>{elements.place('forecast.text', 'text')}"
        " The table shows what would remain with other values of min_bytes:</p>\n"
        f"{elements.table('forecast.bounds', _BOUNDS)}</section>\n"
    )


def _interfaces_note(report: StatusReport, elements: _Elements) -> str:
    if not report.interfaces.enabled:
        return "disabled by the configuration"
    last_response = elements.place("interfaces.last_answer_timestamp_seconds", "ago")
    last_error = elements.place("interfaces.last_error", "last-error")
    return (
        f"{elements.place('interfaces.count', 'count')} in the topology,"
        f" last response {last_response}{last_error}"
    )


def _names_note(report: StatusReport, elements: _Elements) -> str:
    """Return the paragraph about names; empty if no label needs them."""
    if report.names is None:
        return ""
    # Shown only once: all topology queries have the same last error.
    last_error = elements.place("interfaces.last_error", "last-error")
    return (
        f"<p>named from the topology: {elements.place('names.addresses', 'count')} addresses"
        f" ({elements.place('names.ambiguous', 'count')} of them ambiguous),"
        f" {elements.place('names.capture_points', 'count')} capture points;"
        f" last read {elements.place('names.last_reading_timestamp_seconds', 'ago')}"
        f"{'' if report.interfaces.enabled else last_error}</p>\n"
    )


def _own_names_note(report: StatusReport, elements: _Elements) -> str:
    """Return the paragraph about own names; empty if there are none."""
    if report.own_names is None:
        return ""
    return (
        f"<p>own names: {elements.place('own_names.entries', 'count')} entries;"
        f" read {elements.place('own_names.last_load_success_timestamp_seconds', 'ago')}"
        f"{elements.place('own_names.last_error', 'last-error')}</p>\n"
    )
