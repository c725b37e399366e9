"""The cardinality report as HTML."""

from collections.abc import Iterator
from html import escape
from typing import Final
from urllib.parse import quote

from skyfast.web import html
from skyfast.web.cardinality import (
    CardinalityReport,
    LabelCardinality,
    ValueCount,
    ViewCardinality,
)
from skyfast.web.forecast import Forecast, listed, percent
from skyfast.wording import noun

MIN_SHARE: Final = 0.005
"""A value is shown only if at least this fraction of the connections has it.

The limit applies only if a label has more values than the report lists. Of the rarer values, the
report then contains an arbitrary selection."""

SUMMARIZED: Final = 2
"""The number of values that are visible before the user opens the list of a label."""

_HEADS: Final = (
    ("text", "label"),
    ("number", "values"),
    ("number", "{rows} without the label"),
    ("number", "change"),
    ("text", "most frequent values, and their {rows}"),
)
"""The alignment and the title of each column. In titles, ``{rows}`` is replaced with "connections"
for the first view, and with "rows" for all other views."""


def as_html(report: CardinalityReport) -> str:
    panels = (
        _panel("connections", "Connections", report, row="connection"),
        _forecast(report.forecast),
        *(_panel(view.prefix, f"View {view.prefix}", view, row="row") for view in report.views),
    )
    return html.document(
        title="Cardinality · skyfast",
        body=(
            f"{html.header('cardinality', '<p>the values of each label</p>')}"
            f'<main>\n<p class="lead">Each combination of label values is a connection, or a row'
            " of a view. Each connection and each row has several series. A label with many values"
            " causes many connections."
            ' <a href="help#cardinality">What the numbers mean</a> ·'
            ' <a href="?format=json">this page as JSON</a></p>\n'
            f"{_exact(report)}{''.join(panels)}</main>\n"
        ),
        script="refresh.js",
    )


def _note(report: CardinalityReport | ViewCardinality, row: str) -> str:
    text = (
        f"{_count(report.connections, row)}, "
        f"at most {_count(report.series_at_most, 'series', 'series')}"
    )
    if report.approximate:
        text += (
            f"; the numbers under '{row}s without the label' are estimates with an error of"
            " about 1 %"
        )
    return text


def _exact(report: CardinalityReport) -> str:
    without = report.without
    if without is None:
        return ""
    return (
        '<section class="panel"><p>'
        f"Without <code>{escape(without.label)}</code>, there would be "
        f"<strong>{_count(without.connections, 'connection')}</strong> "
        f"({change(without.connections, report.connections)}) with at most "
        f"{_count(without.series_at_most, 'series', 'series')}.</p></section>\n"
    )


def _forecast(forecast: Forecast | None) -> str:
    if forecast is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{listed(bound, forecast)}</th>'
        f'<td class="number">{bound.connections:,}</td><td class="number">{bound.series:,}</td>'
        f'<td class="number">{percent(bound.bytes_share)}</td></tr>\n'
        for bound in forecast.bounds
    )
    heads = "".join(
        f'<th scope="col" class="number">{text}</th>'
        for text in ("connections", "series", "of all bytes")
    )
    return (
        '<section class="panel" aria-labelledby="min_bytes">\n'
        '<div class="head"><h2 id="min_bytes">min_bytes</h2>'
        "<p>what would be exported with other values of min_bytes</p></div>\n"
        '<div class="scroll"><table>\n'
        f'<thead><tr><th scope="col">min_bytes</th>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>\n<p>{escape(forecast.text)}</p>\n</section>\n"
    )


def _panel(id_: str, title: str, report: CardinalityReport | ViewCardinality, *, row: str) -> str:
    heads = "".join(
        f'<th scope="col" class="{side}">{text.format(rows=f"{row}s")}</th>'
        for side, text in _HEADS
    )
    highest = max((label.values for label in report.labels), default=0) or 1
    labels = sorted(
        report.labels, key=lambda label: (label.without.connections, -label.values, label.name)
    )
    rows = "".join(_row(id_, label, report.connections, highest, row=row) for label in labels)
    id_ = escape(id_)
    return (
        f'<section class="panel" aria-labelledby="{id_}">\n'
        f'<div class="head"><h2 id="{id_}">{escape(title)}</h2>'
        f"<p>{_note(report, row)}</p></div>\n"
        f'<div class="scroll"{"" if labels else " hidden"}><table class="labels">\n'
        f"<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody>\n</table></div>\n</section>\n"
    )


def _row(panel: str, label: LabelCardinality, connections: int, highest: int, *, row: str) -> str:
    remaining = label.without.connections
    return (
        f'<tr><th scope="row">{escape(label.name)}</th>'
        f'<td class="number share">{html.bar(label.values / highest)}'
        f"<span>{label.values:,}</span></td>"
        f'<td class="number">{remaining:,}</td>'
        f'<td class="number">{change(remaining, connections)}</td>'
        f'<td class="frequent">{_values(panel, label, connections, row=row)}</td></tr>\n'
    )


def _values(panel: str, label: LabelCardinality, connections: int, *, row: str) -> str:
    shown = frequent(label, connections)
    if not shown:
        if not label.top:
            return ""
        return f"no value has more than {_count(label.top[0].connections, row)}"
    others = label.values - len(shown)
    summary = ", ".join(_summaries(shown[:SUMMARIZED]))
    more = label.values - min(len(shown), SUMMARIZED)
    highest = shown[0].connections or 1
    rows = "".join(
        f'<tr><td class="text">{_link(value)}</td><td class="number share">'
        f"{html.bar(value.connections / highest)}<span>{value.connections:,}</span></td></tr>\n"
        for value in shown
    )
    rest = f"<p>and {_count(others, 'less frequent value')}</p>" if others else ""
    return (
        f'<details data-open="{escape(panel)} {escape(label.name)}"><summary>{summary}'
        f"{f' and {more:,} more' if more else ''}</summary>\n"
        f"<table><tbody>\n{rows}</tbody></table>{rest}</details>"
    )


def frequent(label: LabelCardinality, connections: int) -> tuple[ValueCount, ...]:
    """Return the values in ``label.top`` that are frequent enough to be shown: see `MIN_SHARE`."""
    if label.values <= len(label.top):
        return label.top
    min_connections = MIN_SHARE * connections
    return tuple(value for value in label.top if value.connections >= min_connections)


def _summaries(values: tuple[ValueCount, ...]) -> Iterator[str]:
    for value in values:
        yield f"<span>{escape(value.value) or '(empty)'}</span> {value.connections:,}"


def _link(value: ValueCount) -> str:
    if not value.value:
        return "(empty)"
    return f'<a href="./?filter={quote(value.value, safe="")}">{escape(value.value)}</a>'


def change(remaining: int, total: int) -> str:
    """Return the change from ``total`` to ``remaining`` in percent, such as ``−98 %``."""
    percent = 100 * (total - remaining) / total if total else 0.0
    if percent < 0.05:
        return "0 %"
    if percent < 1 or percent > 99:
        # Show a decimal, so that the percentage is not rounded to 0 or 100.
        return f"−{min(percent, 99.9):.1f} %"
    return f"−{percent:.0f} %"


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {noun(number, singular, plural)}"
