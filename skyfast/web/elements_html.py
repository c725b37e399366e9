"""Elements of the status page: values, titles with values, bars that show limits, and tables.

The attributes of each element contain the path and the format of its value. The script of the page
uses these attributes to update the value.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Final
from urllib.parse import urlencode

from skyfast.web import html
from skyfast.web.forecast import CONFIGURED
from skyfast.web.formats import COLOURS, STATES, TEXTS, formatted
from skyfast.web.help_html import link
from skyfast.web.notices import NEARLY_FULL
from skyfast.web.top import MAX_FILTER_CHARS, RankingQuery

_HIDDEN: Final = "table.hidden_connections"


@dataclass(frozen=True, slots=True)
class HtmlColumn:
    """A column of a table."""

    key: str
    """The path of the value in a row."""
    format: str
    """The format of the value: see `skyfast.web.formats`."""
    head: str
    """The content of the header cell, as HTML."""
    attributes: str = ""
    """Additional attributes of the header cell, as HTML."""
    name: str = ""
    """The label in this column if the label's values can have names, otherwise "".

    The page shows the name of a value instead of the value, unless ``is_beside`` is true."""
    is_beside: bool = False
    """Whether the page shows the name beside the value."""
    bar: str = ""
    """The path of a number from 0 to 1: the length of a bar behind the value. "" for no bar."""
    filters: bool = False
    """Whether the value is a link that filters the table by the value."""
    configured: int = 0
    """The value in this column that is marked as the configured one, or 0 to mark no value."""
    single: str = ""
    """The metric in this column if the metric has one value per row, otherwise "".

    While the table is ranked by the metric, the column is hidden, because the rank column shows the
    same values."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A bar that shows values and their common limit."""

    anchor: str
    """The anchor of the explanation on ``/help``."""
    title: str
    keys: tuple[str, ...]
    """The paths of the values in the report."""
    limit: str
    """The path of the limit in the report."""


class Elements:
    """Renders values of a report as HTML. Parameters called ``key`` are paths in the report."""

    def __init__(self, tree: Any, now_s: float, query: RankingQuery) -> None:
        self._tree = tree
        self._now_s = now_s
        self._query = query

    def value(self, key: str, format_: str, *, tag: str = "span") -> str:
        value = _at(self._tree, key)
        state = f' class="{_class(value, format_)}"' if format_ in STATES else ""
        text = escape(formatted(value, format_, self._now_s))
        return f'<{tag}{state} data-key="{key}" data-format="{format_}">{text}</{tag}>'

    def hidden(self, key: str) -> str:
        """Return HTML to append to the value of ``key``, such as `` (5 hidden)``.

        The result is "" unless ``key`` is ``table.connections`` and bounds are configured.
        """
        if key != "table.connections" or _at(self._tree, _HIDDEN) is None:
            return ""
        return f" <small>({self.value(_HIDDEN, 'count')} hidden)</small>"

    def limit(self, limit: Limit) -> str:
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
        parts = [self.value(key, "count") for key in limit.keys]
        shown = parts[0] if len(parts) == 1 else f"{parts[0]} live and {parts[1]} dormant"
        return (
            f"<div><dt>{link(limit.anchor, limit.title)}</dt>"
            f"<dd>{shown} of {self.value(limit.limit, 'count')}{self.hidden(limit.keys[0])}</dd>"
            f'<svg class="{colour}" aria-hidden="true" data-shares="{" ".join(limit.keys)}"'
            f' data-limit="{limit.limit}">{"".join(rects)}</svg></div>\n'
        )

    def figures(self, figures: Iterable[tuple[str, str, str, str]]) -> str:
        return "".join(
            f"<div><dt>{link(anchor, text)}</dt><dd>{self.value(key, format_)}</dd></div>\n"
            for key, format_, text, anchor in figures
        )

    def _filter(self, text: str) -> str:
        return query_link(replace(self._query, filter=text[:MAX_FILTER_CHARS]))

    def table(self, key: str, columns: Iterable[HtmlColumn]) -> str:
        return self.rows(key, columns, _at(self._tree, key))

    def rows(self, key: str, columns: Iterable[HtmlColumn], rows: Sequence[Any]) -> str:
        """Return a table of ``rows``. If there are no rows, the table is hidden."""
        columns = tuple(columns)
        heads = "".join(
            f'<th scope="col" class="{_side(column.format)}" data-key="{column.key}"'
            f' data-format="{column.format}"{_attributes(column)}{column.attributes}'
            f"{self._hidden(column)}>"
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

    def _hidden(self, column: HtmlColumn) -> str:
        return " hidden" if column.single and column.single == self._query.by else ""

    def _cell(self, column: HtmlColumn, row: Any) -> str:
        value = _at(row, column.key)
        class_ = _class(value, column.format)
        text = escape(formatted(value, column.format, self._now_s))
        if column.configured and value == column.configured:
            text += CONFIGURED
        if column.bar:
            share = _at(row, column.bar) or 0
            return f'<td class="{class_} share">{html.bar(share)}<span>{text}</span></td>'
        if column.format == "points":
            title = "&#10;".join(escape(_full_point(point)) for point in value)
            return f'<td class="{class_}" title="{title}">{text}</td>'
        name = escape(row["names"].get(column.name, "")) if column.name else ""
        title = f' title="{text}{f" ({name})" if name else ""}"' if column.format == "text" else ""
        if column.is_beside:
            class_ += " named"
        shown = name if name and not column.is_beside else text
        if column.filters and value:
            shown = f'<a href="{self._filter(value)}" data-filter="{escape(value)}">{shown}</a>'
        if name and column.is_beside:
            shown += f" <small>{name}</small>"
        return f'<td class="{class_}"{title}{self._hidden(column)}>{shown}</td>'


def _attributes(column: HtmlColumn) -> str:
    attributes = {
        "name": column.name,
        "beside": column.is_beside,
        "bar": column.bar,
        "filters": column.filters,
        "configured": column.configured,
        "single": column.single,
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


def query_link(query: RankingQuery) -> str:
    """Return the relative URL of the status page with this query, escaped for HTML."""
    parameters = {"by": query.by, "n": query.n, "filter": query.filter}
    if query.group:
        parameters["group"] = ",".join(query.group)
    if query.view:
        parameters["view"] = query.view
    return escape("?" + urlencode(parameters, safe=","))
