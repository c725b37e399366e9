"""The cardinality report as HTML."""

from html import escape
from urllib.parse import quote

from skyfast.web.cardinality import CardinalityReport, LabelCardinality
from skyfast.web.forecast import percent, size
from skyfast.web.html import bar, document


def as_html(report: CardinalityReport) -> str:
    """Return ``report`` for a browser."""
    labels = sorted(report.labels, key=lambda label: -label.values)
    return document(
        title="skyfast: cardinality",
        body=(
            "<h1>Cardinality</h1>\n"
            f"<p>{_count(report.connections, 'connection')}, "
            f"at most {_count(report.series_at_most, 'series', 'series')} · "
            '<a href="./">skyfast</a> · <a href="?format=json">as JSON</a></p>\n'
            f"{_aside(report)}{_forecast(report)}"
            f"{''.join(_section(label, report) for label in labels)}"
        ),
    )


def _aside(report: CardinalityReport) -> str:
    without = report.without
    if without is None:
        return ""
    saved = report.connections - without.connections
    return (
        f"<aside>Without <code>{escape(without.label)}</code> there would be "
        f"<strong>{_count(without.connections, 'connection')}</strong> "
        f"({_share(saved, report.connections)} fewer), at most "
        f"{_count(without.series_at_most, 'series', 'series')}.</aside>\n"
    )


def _forecast(report: CardinalityReport) -> str:
    forecast = report.forecast
    if forecast is None:
        return ""
    rows = "".join(
        f'<tr><td>{size(one.min_bytes)}<td class="number">{one.connections:,}'
        f'<td class="number">{one.series:,}<td class="number">{percent(one.bytes_share)}\n'
        for one in forecast.bounds
    )
    return (
        "<section>\n<h2>min_bytes</h2> what a bound would leave\n"
        '<div class="scroll"><table>\n'
        '<tr><th>min_bytes<th class="number">connections<th class="number">series'
        f'<th class="number">of the bytes\n{rows}</table></div>\n'
        f"<p>{escape(forecast.text)}</p>\n</section>\n"
    )


def _section(label: LabelCardinality, report: CardinalityReport) -> str:
    rows = "".join(
        f"<tr><td>{escape(value.value) or '<small>(empty)</small>'}"
        f'<td class="number share">{bar(value.connections / (report.connections or 1))}'
        f"<span>{value.connections:,}</span>\n"
        for value in label.top
    )
    shown = "all" if len(label.top) == label.values else f"the {len(label.top)} most frequent"
    return (
        f'<section>\n<a href="?without={quote(label.name)}">estimate without this label</a>\n'
        f"<h2>{escape(label.name)}</h2> {_count(label.values, 'value')}\n"
        f"<details><summary>{shown}</summary>\n<table>\n{rows}</table></details>\n</section>\n"
    )


def _count(number: int, singular: str, plural: str = "") -> str:
    noun = singular if number == 1 else plural or f"{singular}s"
    return f"{number:,} {noun}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0:.1f}%"
