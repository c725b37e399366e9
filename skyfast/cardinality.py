"""What the labels of the main view cost: how many values each has, and which the most frequent are.

Everything is counted when it is asked for, by scans of the table that take up to some hundred
milliseconds. So they run in threads, one at a time, and what they gave is kept for a moment.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Final, Protocol
from urllib.parse import quote

import msgspec

from skyfast.markup import bar, document
from skyfast.plan import View

TOP_VALUES: Final = 20
"""How many values of each label are listed."""

REPORT_AGE_S: Final = 5.0
"""How old a report may be that is given again."""

VALUES_AGE_S: Final = 1.0
"""How old the numbers of values may be that are given again."""


class Table(Protocol):
    """What is asked of the table, from any thread."""

    @property
    def connections(self) -> int: ...
    def label_values(self) -> Mapping[str, int]: ...
    def top_values(self, label: str, count: int, /) -> Sequence[tuple[str, int]]: ...
    def without(self, label: str, /) -> int: ...


class BusyError(Exception):
    """A report is being made, and there is no other to give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value of a label, and how many connections have it."""

    value: str
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A label, how many values it has, and the most frequent of them."""

    name: str
    values: int
    top: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Without:
    """What would be left if a label were dropped."""

    label: str
    connections: int
    series_at_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the main view holds. Some series are left out where a connection has no such value."""

    connections: int
    series_at_most: int
    labels: tuple[Label, ...]
    without: Without | None = None


class Cardinality:
    """Counts the values of a table's labels."""

    def __init__(self, *, table: Table, view: View) -> None:
        """Count in ``table``, whose main view is ``view``."""
        self._table = table
        self.labels = tuple(column.name for column in view.columns)
        """The names of the labels, ``direction`` not among them: it is the same for all."""
        self._series = sum(len(family.values) for family in view.families)
        self._scanning = threading.Lock()
        self._values: Mapping[str, int] = {}
        self._values_until = 0.0
        self._making = False
        self._report = Report(connections=0, series_at_most=0, labels=())
        self._report_until = 0.0
        self._withouts: dict[str, tuple[Without, float]] = {}

    def values(self) -> Mapping[str, int]:
        """Return the number of distinct values of each label. Takes long; any thread may ask."""
        with self._scanning:
            if time.monotonic() >= self._values_until:
                self._values = self._table.label_values()
                self._values_until = time.monotonic() + VALUES_AGE_S
            return self._values

    async def report(self, without: str | None = None) -> Report:
        """Return a report, made in a thread where there is none that is young enough.

        ``without`` is one of `labels`, for which to find out what dropping it would leave. Raises
        BusyError where another report is being made.
        """
        report = self._kept(without)
        if report is not None:
            return report
        if self._making:
            raise BusyError
        self._making = True
        loop = asyncio.get_running_loop()
        made = loop.run_in_executor(None, self._make, without)
        # Whoever asked may leave meanwhile; the thread goes on all the same.
        made.add_done_callback(self._made)
        return await asyncio.shield(made)

    def _made(self, made: "asyncio.Future[Report]") -> None:
        self._making = False
        if not made.cancelled():
            made.exception()  # looked at, also where nobody awaits it any more

    def _kept(self, without: str | None) -> Report | None:
        """Return what was found out, as long as all of it is young enough."""
        now = time.monotonic()
        if now >= self._report_until:
            return None
        if without is None:
            return self._report
        found, until = self._withouts.get(without, (None, 0.0))
        return self._combined(found) if now < until else None

    def _make(self, without: str | None) -> Report:
        if time.monotonic() >= self._report_until:
            values = self.values()
            connections = self._table.connections
            self._report = Report(
                connections=connections,
                series_at_most=connections * self._series,
                labels=tuple(self._label(name, values[name]) for name in self.labels),
            )
            self._report_until = time.monotonic() + REPORT_AGE_S
        if without is None:
            return self._report
        left = self._table.without(without)
        found = Without(label=without, connections=left, series_at_most=left * self._series)
        self._withouts[without] = (found, time.monotonic() + REPORT_AGE_S)
        return self._combined(found)

    def _label(self, name: str, values: int) -> Label:
        top = self._table.top_values(name, TOP_VALUES)
        return Label(
            name=name,
            values=values,
            top=tuple(Value(value=value, connections=count) for value, count in top),
        )

    def _combined(self, without: Without | None) -> Report:
        return replace(self._report, without=without)


def as_json(report: Report) -> bytes:
    """Return ``report`` as a JSON object with the names of its fields."""
    return msgspec.json.encode(report)


def as_html(report: Report) -> str:
    """Return ``report`` for a browser."""
    labels = sorted(report.labels, key=lambda label: -label.values)
    return document(
        title="skyfast: cardinality",
        body=(
            "<h1>Cardinality</h1>\n"
            f"<p>{_count(report.connections, 'connection')}, "
            f"at most {_count(report.series_at_most, 'series', 'series')} · "
            '<a href="./">skyfast</a> · <a href="?format=json">as JSON</a></p>\n'
            f"{_aside(report)}{''.join(_section(label, report) for label in labels)}"
        ),
    )


def _aside(report: Report) -> str:
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


def _section(label: Label, report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(value.value) or '<small>(empty)</small>'}"
        f'<td class="number share">{bar(value.connections / (report.connections or 1))}'
        f"<span>{value.connections:,}</span>\n"
        for value in label.top
    )
    shown = "all" if len(label.top) == label.values else f"the {len(label.top)} most frequent"
    return (
        f'<section>\n<a href="?without={quote(label.name)}">what if it were dropped?</a>\n'
        f"<h2>{escape(label.name)}</h2> {_count(label.values, 'value')}\n"
        f"<details><summary>{shown}</summary>\n<table>\n{rows}</table></details>\n</section>\n"
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0:.1f}%"
