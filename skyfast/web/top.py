"""The busiest connections, for ``/api/top`` and the status page.

A ranking scans the table. Scans run in a thread, one at a time, and requests for the same ranking
within a second share the result. Rates compare the table with a snapshot, which is taken on the
first request for rates and released after a minute without requests.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import msgspec

from skyfast.flows.plan import Family, View
from skyfast.runtime.logs import printable
from skyfast.text_format import MetricType
from skyfast.web.scan_cache import ScanCache

PARAMETERS: Final = ("by", "n", "filter")
"""The query parameters of a ranking."""

DEFAULT_ENTRIES: Final = 50
MAX_ENTRIES: Final = 1000
"""The default and the maximum number of connections in a response."""

MAX_FILTER_CHARS: Final = 200
"""The maximum length of a text to search for in label values."""

RESULT_AGE_S: Final = 1.0
"""How long a result is shared with equal requests."""

MAX_RESULTS: Final = 8
"""The maximum number of rankings running, queued or cached."""

SNAPSHOT_IDLE_S: Final = 60.0
"""How long snapshots are kept after the last request for rates."""

REPORT_INTERVAL_S: Final = 60.0
"""How often an analyzer reports a flow (``flow.update``).

A report adds the traffic of a whole interval, even if it arrives right after the snapshot.
Therefore rates are never computed over a shorter time."""

RATES: Final = ("bytes", "packets")
"""The metrics that can be ranked by rate. Each needs up to two snapshots."""

PER_SECOND: Final = "_per_second"

Unit = Literal["bytes", "seconds", "nanoseconds", "timestamp", ""]

Row = tuple[int, tuple[str, ...], tuple[int | None, ...]]


class TopTable(Protocol):
    """The table, as used by rankings, from any thread."""

    @property
    def connections(self) -> int: ...
    def snapshot(self, family: int, /) -> Any: ...
    def top(
        self, family: int, count: int, /, since: Any = None, containing: str = ""
    ) -> Sequence[Row]: ...


class QueryError(ValueError):
    """The query is invalid. The text is the reason, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query for at most ``n`` connections with ``filter`` in a label value."""

    by: str
    n: int = DEFAULT_ENTRIES
    filter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric of the main view. ``directions`` is 2 if each direction has its own value."""

    name: str
    family: str
    type: MetricType
    unit: Unit
    directions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingKey:
    """A ranking criterion: a metric of the same name, or its rate."""

    name: str
    family: int
    is_rate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A connection: its labels and, by metric, its values, in the metric's unit.

    A value is None if the connection does not have it. ``rank`` is the value of the ranking
    criterion.
    """

    rank: float
    labels: dict[str, str]
    values: dict[str, list[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """A ranking. ``window_seconds`` is the age of the snapshot, or None without one."""

    by: str
    unit: Unit
    filter: str
    window_seconds: float | None
    took_seconds: float
    connections: int
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class RankingResult:
    """A `Top`, and its JSON encoding, which takes 1 ms for a thousand entries."""

    top: Top
    json: bytes


@dataclass(frozen=True, slots=True)
class _Snapshot:
    snapshot: Any
    taken_s: float


class Ranking:
    """Ranks the connections of one table."""

    def __init__(self, *, table: TopTable, view: View, metrics: Sequence[str]) -> None:
        """Rank connections of ``table``. ``metrics`` names the families of ``view``, in order."""
        self._table = table
        self._families = view.families
        self.labels = tuple(column.name for column in view.columns)
        self.metrics = tuple(map(_metric, metrics, view.families))
        keys = [
            RankingKey(name=metric.name, family=family, is_rate=False)
            for family, metric in enumerate(self.metrics)
        ]
        keys += [
            RankingKey(name=metric.name + PER_SECOND, family=family, is_rate=True)
            for family, metric in enumerate(self.metrics)
            if metric.name in RATES and metric.type == "counter"
        ]
        self.keys: dict[str, RankingKey] = {}
        """Ranking criteria by name: all metrics in their order, then the rates."""
        for key in keys:
            self.keys.setdefault(key.name, key)
        self._results: ScanCache[Query, RankingResult] = ScanCache(
            keep_s=RESULT_AGE_S, max_results=MAX_RESULTS, queue=True
        )
        self._snapshots: dict[int, list[_Snapshot]] = {}
        self._release_timer: asyncio.TimerHandle | None = None

    @property
    def default(self) -> str:
        """The default criterion: bytes, or the first metric if there is no such metric."""
        return "bytes" if "bytes" in self.keys else next(iter(self.keys))

    @property
    def snapshots(self) -> int:
        """The number of snapshots."""
        return sum(map(len, self._snapshots.values()))

    def query(self, parameters: Sequence[tuple[str, str]], *, n: int = DEFAULT_ENTRIES) -> Query:
        """Parse the ``parameters`` of a URL; ``n`` is the default. Raises QueryError."""
        given: dict[str, str] = {}
        for name, value in parameters:
            if name not in PARAMETERS:
                known = ", ".join(PARAMETERS)
                raise QueryError(f"Unknown parameter {printable(name)}. Parameters: {known}.")
            if name in given:
                raise QueryError(f"The parameter {name} is repeated.")
            given[name] = value
        by, number, text = given.get("by", self.default), given.get("n"), given.get("filter", "")
        if by not in self.keys:
            raise QueryError(f"by: unknown value {printable(by)}. Values: {', '.join(self.keys)}.")
        if not text.isascii() and not text.encode(errors="ignore").decode() == text:
            raise QueryError("filter: not valid UTF-8.")
        if len(text) > MAX_FILTER_CHARS:
            raise QueryError(f"filter: longer than {MAX_FILTER_CHARS} characters.")
        return Query(by=by, n=n if number is None else _count(number), filter=text)

    async def top(self, query: Query) -> RankingResult:
        """Return the ranking for a ``query`` returned by `query`. Raises BusyError."""
        return await self._results.get(query, lambda: self._scan(query))

    def close(self) -> None:
        """Release the snapshots."""
        if self._release_timer is not None:
            self._release_timer.cancel()
        self._snapshots = {}

    async def _scan(self, query: Query) -> RankingResult:
        try:
            return await asyncio.to_thread(self._rank, query)
        finally:
            if self.keys[query.by].is_rate:
                if self._release_timer is not None:
                    self._release_timer.cancel()
                self._release_timer = asyncio.get_running_loop().call_later(
                    SNAPSHOT_IDLE_S, self.close
                )

    def _rank(self, query: Query) -> RankingResult:
        key = self.keys[query.by]
        start_s = time.monotonic()
        since = self._baseline(key.family, start_s) if key.is_rate else None
        rows = self._table.top(
            key.family,
            query.n,
            since=since.snapshot if since else None,
            containing=query.filter,
        )
        family = self._families[key.family]
        seconds = max(start_s - since.taken_s, REPORT_INTERVAL_S) if since else None
        entries = [
            self._entry(
                row, rank=_scaled(row[0], family) / seconds if seconds else _scaled(row[0], family)
            )
            for row in rows
        ]
        top = Top(
            by=query.by,
            unit=self.metrics[key.family].unit,
            filter=query.filter,
            window_seconds=round(start_s - since.taken_s, 3) if since else None,
            took_seconds=round(time.monotonic() - start_s, 6),
            connections=self._table.connections,
            entries=entries,
        )
        return RankingResult(top, msgspec.json.encode(top))

    def _baseline(self, family: int, now_s: float) -> _Snapshot:
        """Return the snapshot to compare with: one or two minutes old, or the oldest available.

        Keeps at most two snapshots. The newer one replaces the older one after a minute.
        """
        taken = self._snapshots.setdefault(family, [])
        if len(taken) > 1 and now_s - taken[1].taken_s >= REPORT_INTERVAL_S:
            del taken[0]
        if not taken or now_s - taken[-1].taken_s >= REPORT_INTERVAL_S:
            taken.append(_Snapshot(self._table.snapshot(family), now_s))
        return taken[0]

    def _entry(self, row: Row, *, rank: float) -> Entry:
        _, labels, flat = row
        values: dict[str, list[float | None]] = {}
        start = 0
        for metric, family in zip(self.metrics, self._families, strict=True):
            end = start + len(family.values)
            values[metric.name] = [
                None if value is None else _scaled(value, family) for value in flat[start:end]
            ]
            start = end
        return Entry(rank=rank, labels=dict(zip(self.labels, labels, strict=True)), values=values)


def _metric(name: str, family: Family) -> Metric:
    unit: Unit
    match family.unit:
        case "seconds" if "_timestamp_" in family.name:
            unit = "timestamp"
        case "bytes" | "seconds" | "nanoseconds":
            unit = family.unit
        case _:
            unit = ""
    return Metric(
        name=name,
        family=family.name,
        type=family.type,
        unit=unit,
        directions=len(family.values),
    )


def _scaled(value: int, family: Family) -> float:
    """Return the value as shown on the page: an integer if possible."""
    return value / 10**family.decimals if family.decimals else value


def _count(text: str) -> int:
    # `int` also accepts signs, spaces, underscores and non-ASCII digits.
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
    if not 1 <= number <= MAX_ENTRIES:
        raise QueryError(f"n: not an integer from 1 to {MAX_ENTRIES}.")
    return number
