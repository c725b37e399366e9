"""The busiest connections on the status page, as HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import Final

from skyfast.web.elements_html import Elements, HtmlColumn, query_link
from skyfast.web.formats import count, duration, formatted
from skyfast.web.groupings import Grouping, groupings, pairs
from skyfast.web.ranked_views import PER_SECOND, RankedMetric, RankedView, RankingKey, Unit
from skyfast.web.top import Ranking, RankingQuery, Top
from skyfast.wording import noun

ROWS: Final = (20, 50, 100, 500)
"""The numbers of table rows that the user can choose from."""

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

BUSY: Final = "Too many rankings are in progress: try again."


def _title(key: RankingKey) -> str:
    name = key.name.removesuffix(PER_SECOND) + "/s" if key.is_rate else key.name
    return escape(name.replace("_", " "))


def _format(metric: RankedMetric, *, is_rate: bool = False) -> str:
    return _UNIT_FORMATS[metric.unit] + ("-rate" if is_rate else "")


def ranking_links(ranking: Ranking, query: RankingQuery) -> str:
    keys = ranking.views[query.view].keys.values()
    return "\n".join(_ranking_link(key, query) for key in keys)


def _ranking_link(key: RankingKey, query: RankingQuery) -> str:
    format_ = _format(key.metric, is_rate=key.is_rate)
    current = ' aria-current="true"' if key.name == query.by else ""
    return (
        f'<a href="{query_link(replace(query, by=key.name))}" data-by="{escape(key.name)}"'
        f' data-format="{format_}"{current}>{_title(key)}</a>'
    )


def grouping_links(ranking: Ranking, query: RankingQuery) -> str:
    """Return the links that choose what is ranked: connections, groups or rows of a view."""
    return "\n".join(_grouping_link(grouping, query) for grouping in groupings(ranking.views))


def _grouping_link(grouping: Grouping, query: RankingQuery) -> str:
    is_current = query.group == grouping.group and (
        query.view == grouping.view or bool(grouping.group)
    )
    current = ' aria-current="true"' if is_current else ""
    link = query_link(replace(query, group=grouping.group, view=grouping.view))
    return (
        f'<a href="{link}" data-group="{escape(",".join(grouping.group))}"'
        f' data-view="{escape(grouping.view)}"{current}>{escape(grouping.title)}</a>'
    )


def row_options(chosen: int) -> str:
    return "".join(
        f"<option{' selected' if n == chosen else ''}>{n}</option>" for n in sorted({*ROWS, chosen})
    )


def group_options(ranking: Ranking, query: RankingQuery) -> str:
    """Return the options for grouping: pairs (``initiator_x``, ``target_x``) and single labels.

    If connections are ranked, labels that the first view does not have come last.
    """
    labels = ranking.views[query.view].labels
    groups = [(), *pairs(labels)]
    if not query.view:
        for view in ranking.views.values():
            groups += [group for group in pairs(view.labels) if not {*group} <= {*labels}]
    if query.group not in groups:
        groups.append(query.group)
    return "".join(
        f'<option value="{escape(",".join(group))}"'
        f"{' selected' if group == query.group else ''}>{_group_title(group)}</option>"
        for group in dict.fromkeys(groups)
    )


def _group_title(group: tuple[str, ...]) -> str:
    return escape(" + ".join(label.replace("_", " ") for label in group)) or "nothing"


def note(ranking: Ranking, query: RankingQuery, top: Top) -> str:
    """Return the text above the table, as HTML."""
    if top.note is not None:
        return escape(top.note)
    row = "row" if top.view else "connection"
    # Do not use the total of the status report: it may be newer than the ranking.
    total = top.connections if top.groups is None else top.groups
    singular = row if top.groups is None else "group"
    text = f"{count(len(top.entries))} of {count(total)} {noun(total, singular)}"
    if top.view:
        text += f" of the view {top.view}"
    if top.other is not None and top.other.connections:
        key = ranking.views[query.view].keys[query.by]
        format_ = _format(key.metric, is_rate=key.is_rate)
        others = f"{count(top.other.connections)} {noun(top.other.connections, row)}"
        text += f"; all other groups ({others}): {formatted(top.other.rank, format_, 0)}"
    if top.approximate:
        text += "; too many groups: sums are approximate"
    if top.window_seconds is not None:
        text += (
            f"; averages over the last {duration(top.window_seconds)};"
            f" agents report each flow every {formatted(top.flow_update_seconds, 'seconds', 0)}"
        )
    return escape(text)


def histograms(ranking: Ranking, query: RankingQuery) -> str:
    names = [escape(name.replace("_", " ")) for name in ranking.views[query.view].histograms]
    if not names:
        return ""
    return f"<p>This table does not show the histograms of the view: {', '.join(names)}.</p>\n"


def table(
    ranking: Ranking, query: RankingQuery, top: Top | None, elements: Elements, *, has_bounds: bool
) -> str:
    """Return the table as HTML. ``has_bounds`` tells whether rows of the view can be hidden."""
    view = ranking.views[query.view]
    key = view.keys[query.by]
    columns = [
        HtmlColumn(
            "rank",
            _format(key.metric, is_rate=key.is_rate),
            _title(key),
            ' aria-sort="descending"',
            bar="share",
        ),
        *_label_columns(query.group or view.labels, view),
        *([HtmlColumn("connections", "count", _rows_title(query))] if query.group else []),
        *(column for metric in view.metrics for column in _value_columns(metric, query)),
        *([HtmlColumn("hidden", "hidden", "series")] if has_bounds and not query.group else []),
    ]
    entries = top.entries if top else []
    rows = [
        {
            "rank": entry.rank,
            "share": entry.rank / (entries[0].rank or 1),
            "labels": entry.labels,
            "names": entry.names,
            "connections": entry.connections,
            "hidden": entry.hidden,
            "values": entry.values,
        }
        for entry in entries
    ]
    return elements.rows("top", columns, rows)


def _rows_title(query: RankingQuery) -> str:
    return "rows" if query.view else "connections"


def _label_columns(labels: Sequence[str], view: RankedView) -> Iterable[HtmlColumn]:
    addresses = view.addresses_without_names(labels)
    for label in labels:
        yield HtmlColumn(
            f"labels.{label}",
            "text",
            label.replace("_", " "),
            name=label if label in addresses | view.nodes else "",
            is_beside=label in addresses,
            filters=True,
        )


def _value_columns(metric: RankedMetric, query: RankingQuery) -> Iterable[HtmlColumn]:
    name = escape(metric.name.replace("_", " "))
    link = (
        f'<a href="{query_link(replace(query, by=metric.name))}"'
        f' data-by="{escape(metric.name)}">{name}</a>'
    )
    for index in range(metric.directions):
        arrow = f" {_DIRECTIONS[index]}" if metric.directions == 2 else ""
        single = escape(metric.name) if metric.directions == 1 else ""
        key = f"values.{metric.name}.{index}"
        yield HtmlColumn(key, _format(metric), link + arrow, single=single)
