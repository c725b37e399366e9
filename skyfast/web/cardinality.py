"""The number of values of each label, and the effect of removing the label.

A scan of the table takes up to hundreds of milliseconds. Therefore reports are made in a thread,
one at a time, and cached briefly. All numbers of a view in a report come from the same scan.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from skyfast.flows.plan import View
from skyfast.web.forecast import Forecast, Forecaster
from skyfast.web.scan_cache import ScanCache

TOP_VALUES: Final = 20
"""The number of values that a report lists for each label."""

REPORT_AGE_S: Final = 5.0
"""How long a report is cached."""

VALUES_AGE_S: Final = 1.0
"""How long the result of `Cardinality.values` is cached."""

LabelCounts = tuple[int, Sequence[tuple[str, int]], int]
"""Three items about a label:

* the number of its values
* its most frequent values, each with its number of rows
* the number of rows that would remain without the label
"""


class CardinalityTable(Protocol):
    """The table's methods for cardinality reports. They can be called from any thread."""

    def label_values(self) -> Mapping[str, int]: ...
    def cardinality(
        self, count: int, without: str | None = None, view: int = 0, /
    ) -> tuple[int, Mapping[str, LabelCounts], bool, int | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueCount:
    value: str
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """The number of connections and series that would remain without a label."""

    connections: int
    series_at_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCardinality:
    """The values of a label, and the effect of removing the label."""

    name: str
    values: int
    """Number of distinct values."""
    top: tuple[ValueCount, ...]
    """The most frequent values, at most `TOP_VALUES`."""
    without: Remaining
    """Estimates if the report is ``approximate``, otherwise exact numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutLabel:
    """The exact number of connections and series that would remain without ``label``."""

    label: str
    connections: int
    series_at_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewCardinality:
    """The cardinality of a view other than the first view."""

    prefix: str
    connections: int
    """Number of rows of the view."""
    series_at_most: int
    approximate: bool
    labels: tuple[LabelCardinality, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardinalityReport:
    """The cardinality of the first view (the connections) and of all other views.

    All numbers except those of ``forecast`` include hidden connections, which are below
    ``min_bytes`` and ``min_packets``.
    """

    connections: int
    series_at_most: int
    """Upper bound on the number of series.

    The actual number is lower if connections are hidden, or if values are missing."""
    approximate: bool
    """Whether the numbers in `LabelCardinality.without` are estimates."""
    labels: tuple[LabelCardinality, ...]
    """The labels of the first view."""
    views: tuple[ViewCardinality, ...] = ()
    """All views except the first view."""
    without: WithoutLabel | None = None
    """The exact numbers without a certain label, or None if the client has not chosen a label."""
    forecast: Forecast | None = None
    """None if the first view does not count bytes."""


class Cardinality:
    def __init__(
        self,
        *,
        table: CardinalityTable,
        view: View,
        others: Mapping[str, View] | None = None,
        forecaster: Forecaster | None = None,
    ) -> None:
        """``others`` maps prefixes to all views except the first ``view``, in the table's order."""
        self._table = table
        self._forecaster = forecaster
        self.labels = tuple(column.name for column in view.columns)
        """All labels of the first view except ``direction``.

        ``direction`` has the same values for all connections."""
        self._series = _max_series_per_row(view)
        self._others = others or {}
        self._scanning = threading.Lock()
        self._values: Mapping[str, int] = {}
        self._values_until = 0.0
        self._reports: ScanCache[str | None, CardinalityReport] = ScanCache(
            keep_s=REPORT_AGE_S, max_results=1 + len(self.labels), queue=False
        )

    def values(self) -> Mapping[str, int]:
        """Return the number of distinct values of each label. Slow and thread-safe."""
        with self._scanning:
            if time.monotonic() >= self._values_until:
                self._values = self._table.label_values()
                self._values_until = time.monotonic() + VALUES_AGE_S
            return self._values

    async def report(self, without: str | None = None) -> CardinalityReport:
        """Return a cached report, or make a new report of all views in a thread.

        If ``without`` is one of `labels`, the report also has the exact cardinality without this
        label. Raises BusyError if another report is in progress.
        """
        return await self._reports.get(without, lambda: asyncio.to_thread(self._make, without))

    def _make(self, without: str | None) -> CardinalityReport:
        connections, labels, is_exact, remaining = self._table.cardinality(TOP_VALUES, without)
        return CardinalityReport(
            connections=connections,
            series_at_most=connections * self._series,
            approximate=not is_exact,
            labels=tuple(_label(name, labels[name], self._series) for name in self.labels),
            views=tuple(
                self._view(index, prefix, view)
                for index, (prefix, view) in enumerate(self._others.items(), 1)
            ),
            forecast=self._forecaster.make() if self._forecaster else None,
            without=(
                None
                if without is None or remaining is None
                else WithoutLabel(
                    label=without, connections=remaining, series_at_most=remaining * self._series
                )
            ),
        )

    def _view(self, index: int, prefix: str, view: View) -> ViewCardinality:
        connections, labels, is_exact, _ = self._table.cardinality(TOP_VALUES, None, index)
        series = _max_series_per_row(view)
        return ViewCardinality(
            prefix=prefix,
            connections=connections,
            series_at_most=connections * series,
            approximate=not is_exact,
            labels=tuple(_label(name, counts, series) for name, counts in labels.items()),
        )


def _max_series_per_row(view: View) -> int:
    return sum(family.series for family in view.families)


def _label(name: str, counts: LabelCounts, series: int) -> LabelCardinality:
    values, top, remaining = counts
    return LabelCardinality(
        name=name,
        values=values,
        top=tuple(ValueCount(value=value, connections=count) for value, count in top),
        without=Remaining(connections=remaining, series_at_most=remaining * series),
    )


def as_json(report: CardinalityReport) -> bytes:
    return msgspec.json.encode(report)
