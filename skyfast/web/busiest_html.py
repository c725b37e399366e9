"""The busiest connections on the status page: the choices, the note and the table."""

from collections.abc import Iterable
from html import escape
from typing import Final

from skyfast.web.elements_html import Elements, HtmlColumn, query_link
from skyfast.web.formats import count, duration, formatted
from skyfast.web.top import (
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

_UNIT_FORMATS: Final[dict[Unit, str]] = {
    "bytes": "bytes",
    "seconds": "seconds",
    "nanoseconds": "nanoseconds",
    "timestamp": "timestamp",
    "": "number",
}

_DIRECTIONS = (
    '<span aria-hidden="true">→</span><span class="unseen">from initiator to target</span>',
    '<span aria-hidden="true">←</span><span class="unseen">from target to initiator</span>',
)

NO_RATES: Final = (
    "No rates yet: they need new reports, and each connection is reported about once a minute."
)

BUSY: Final = "Too many rankings are in progress: try again."


def _title(key: RankingKey) -> str:
    name = key.name.removesuffix(PER_SECOND) + "/s" if key.is_rate else key.name
    return escape(name.replace("_", " "))


def _format(metric: Metric, *, is_rate: bool = False) -> str:
    return _UNIT_FORMATS[metric.unit] + ("-rate" if is_rate else "")


def ranking_link(key: RankingKey, ranking: Ranking, query: Query) -> str:
    format_ = _format(ranking.metrics[key.family], is_rate=key.is_rate)
    current = ' aria-current="true"' if key.name == query.by else ""
    return (
        f'<a href="{query_link(key.name, query)}" data-by="{escape(key.name)}"'
        f' data-format="{format_}"{current}>{_title(key)}</a>'
    )


def row_options(chosen: int) -> str:
    return "".join(
        f"<option{' selected' if n == chosen else ''}>{n}</option>" for n in sorted({*ROWS, chosen})
    )


def group_options(ranking: Ranking, query: Query) -> str:
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


def note(ranking: Ranking, query: Query, top: Top) -> str:
    is_new = top.window_seconds is not None and top.window_seconds < REPORT_INTERVAL_S
    if is_new and not top.entries:
        return NO_RATES
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


def table(ranking: Ranking, query: Query, top: Top | None, elements: Elements) -> str:
    key = ranking.keys[query.by]
    columns = [
        HtmlColumn(
            "rank",
            _format(ranking.metrics[key.family], is_rate=key.is_rate),
            _title(key),
            ' aria-sort="descending"',
            bar="share",
        ),
        *(_label_column(label, ranking) for label in query.group or ranking.labels),
        *([HtmlColumn("connections", "count", "connections")] if query.group else []),
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


def _label_column(label: str, ranking: Ranking) -> HtmlColumn:
    return HtmlColumn(
        f"labels.{label}",
        "text",
        label.replace("_", " "),
        name=label if label in ranking.addresses | ranking.nodes else "",
        is_beside=label in ranking.addresses,
        filters=True,
    )


def _value_columns(metric: Metric, query: Query) -> Iterable[HtmlColumn]:
    name = escape(metric.name.replace("_", " "))
    link = f'<a href="{query_link(metric.name, query)}" data-by="{escape(metric.name)}">{name}</a>'
    for index in range(metric.directions):
        arrow = f" {_DIRECTIONS[index]}" if metric.directions == 2 else ""
        yield HtmlColumn(f"values.{metric.name}.{index}", _format(metric), link + arrow)
