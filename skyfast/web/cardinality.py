"""The number of values of each label, and the most frequent values.

Values are counted on request, by scans of the table that take up to hundreds of milliseconds. Scans
run in threads, one at a time, and their results are cached briefly. A report uses a single scan, so
that its values are consistent.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
"""How long the numbers of values are cached."""


class CardinalityTable(Protocol):
    """The table, as used by cardinality reports, from any thread."""

    def label_values(self) -> Mapping[str, int]: ...
    def cardinality(
        self, count: int, without: str | None = None, /
    ) -> tuple[int, Mapping[str, tuple[int, Sequence[tuple[str, int]]]], int | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueCount:
    """A value of a label, and the number of connections with it."""

    value: str
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCardinality:
    """A label, the number of its values, and the most frequent values."""

    name: str
    values: int
    top: tuple[ValueCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutLabel:
    """The number of connections and series without a label."""

    label: str
    connections: int
    series_at_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CardinalityReport:
    """The cardinality of the main view.

    ``series_at_most`` is an upper bound: a connection has no series for a missing value, and a
    hidden connection has none at all. All numbers except those of ``forecast`` include hidden
    connections. ``forecast`` is None if the main view does not count bytes.
    """

    connections: int
    series_at_most: int
    labels: tuple[LabelCardinality, ...]
    without: WithoutLabel | None = None
    forecast: Forecast | None = None


class Cardinality:
    """Counts the values of a table's labels."""

    def __init__(
        self, *, table: CardinalityTable, view: View, forecaster: Forecaster | None = None
    ) -> None:
        """Initialize for ``table``, whose main view is ``view``. Reports include a forecast."""
        self._table = table
        self._forecaster = forecaster
        self.labels = tuple(column.name for column in view.columns)
        """The label names, without ``direction``, which is the same for all connections."""
        self._series = sum(family.series for family in view.families)
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
        """Return a report, from the cache or from a new scan in a thread.

        ``without`` is one of `labels`: then the report has the cardinality without this label, too.
        Raises BusyError if another report is in progress.
        """
        return await self._reports.get(without, lambda: asyncio.to_thread(self._make, without))

    def _make(self, without: str | None) -> CardinalityReport:
        """Create a report from a single scan, so that its values are consistent.

        Only the forecast has a scan of its own.
        """
        connections, labels, left = self._table.cardinality(TOP_VALUES, without)
        report = CardinalityReport(
            connections=connections,
            series_at_most=connections * self._series,
            labels=tuple(_label(name, *labels[name]) for name in self.labels),
            forecast=self._forecaster.make() if self._forecaster else None,
        )
        if without is not None and left is not None:
            estimate = WithoutLabel(
                label=without, connections=left, series_at_most=left * self._series
            )
            report = replace(report, without=estimate)
        return report


def _label(name: str, values: int, top: Sequence[tuple[str, int]]) -> LabelCardinality:
    return LabelCardinality(
        name=name,
        values=values,
        top=tuple(ValueCount(value=value, connections=count) for value, count in top),
    )


def as_json(report: CardinalityReport) -> bytes:
    """Return ``report`` as JSON."""
    return msgspec.json.encode(report)
