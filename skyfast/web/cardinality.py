"""The number of values of each label, and the most frequent values.

Everything is counted when it is asked for, by scans of the table that take up to some hundred
milliseconds. So they run in threads, one at a time, and what they gave is kept for a moment. A
report is of a single scan, so that its figures fit each other.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec

from skyfast.flows.plan import View
from skyfast.web.scan_cache import ScanCache

TOP_VALUES: Final = 20
"""How many values of each label are listed."""

REPORT_AGE_S: Final = 5.0
"""How old a report may be that is given again."""

VALUES_AGE_S: Final = 1.0
"""How old the numbers of values may be that are given again."""


class CardinalityTable(Protocol):
    """What is asked of the table, from any thread."""

    def label_values(self) -> Mapping[str, int]: ...
    def cardinality(
        self, count: int, without: str | None = None, /
    ) -> tuple[int, Mapping[str, tuple[int, Sequence[tuple[str, int]]]], int | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueCount:
    """A value of a label, and how many connections have it."""

    value: str
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCardinality:
    """A label, how many values it has, and the most frequent of them."""

    name: str
    values: int
    top: tuple[ValueCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutLabel:
    """What would be left if a label were dropped."""

    label: str
    connections: int
    series_at_most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CardinalityReport:
    """What the main view holds. Some series are left out where a connection has no such value."""

    connections: int
    series_at_most: int
    labels: tuple[LabelCardinality, ...]
    without: WithoutLabel | None = None


class Cardinality:
    """Counts the values of a table's labels."""

    def __init__(self, *, table: CardinalityTable, view: View) -> None:
        """Count in ``table``, whose main view is ``view``."""
        self._table = table
        self.labels = tuple(column.name for column in view.columns)
        """The names of the labels, ``direction`` not among them: it is the same for all."""
        self._series = sum(len(family.values) for family in view.families)
        self._scanning = threading.Lock()
        self._values: Mapping[str, int] = {}
        self._values_until = 0.0
        self._reports: ScanCache[str | None, CardinalityReport] = ScanCache(
            keep_s=REPORT_AGE_S, max_results=1 + len(self.labels), queue=False
        )

    def values(self) -> Mapping[str, int]:
        """Return the number of distinct values of each label. Takes long; any thread may ask."""
        with self._scanning:
            if time.monotonic() >= self._values_until:
                self._values = self._table.label_values()
                self._values_until = time.monotonic() + VALUES_AGE_S
            return self._values

    async def report(self, without: str | None = None) -> CardinalityReport:
        """Return a report, made in a thread where there is none that is young enough.

        ``without`` is one of `labels`, for which to find out what dropping it would leave. Raises
        BusyError where another report is being made.
        """
        return await self._reports.get(without, lambda: asyncio.to_thread(self._make, without))

    def _make(self, without: str | None) -> CardinalityReport:
        """Make a report of one scan: figures of several moments would contradict each other."""
        connections, labels, left = self._table.cardinality(TOP_VALUES, without)
        report = CardinalityReport(
            connections=connections,
            series_at_most=connections * self._series,
            labels=tuple(_label(name, *labels[name]) for name in self.labels),
        )
        if without is not None and left is not None:
            found = WithoutLabel(
                label=without, connections=left, series_at_most=left * self._series
            )
            report = replace(report, without=found)
        return report


def _label(name: str, values: int, top: Sequence[tuple[str, int]]) -> LabelCardinality:
    return LabelCardinality(
        name=name,
        values=values,
        top=tuple(ValueCount(value=value, connections=count) for value, count in top),
    )


def as_json(report: CardinalityReport) -> bytes:
    """Return ``report`` as a JSON object with the names of its fields."""
    return msgspec.json.encode(report)
