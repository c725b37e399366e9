"""The busiest connections, or groups of them, for ``/api/top`` and the status page.

A ranking scans the table once, even if it ranks groups. Scans run in a thread, one at a time, and
requests for the same ranking within a second share the result. Rates compare the table with a
snapshot, which is taken on the first request for rates and released after a minute without
requests.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import msgspec

from skyfast.flows.catalog import ADDRESS_NAMES, INITIATOR_IP, NODE_TID, TARGET_IP
from skyfast.flows.plan import Column, Family, View
from skyfast.runtime.logs import printable
from skyfast.skydive.known_names import KnownNames
from skyfast.text_format import MetricType, escaped
from skyfast.web.scan_cache import ScanCache

PARAMETERS: Final = ("by", "n", "filter", "group")
"""The query parameters of a ranking."""

DEFAULT_ENTRIES: Final = 50
MAX_ENTRIES: Final = 1000
"""The default and the maximum number of connections or groups in a response."""

MAX_FILTER_CHARS: Final = 200
"""The maximum length of a text to search for in label values."""

MAX_GROUPS: Final = 65_536
"""The maximum number of groups. Further groups with the lowest ranks are added to `Other`.

This number of groups takes up to 24 MiB with two counters of both directions and one gauge."""

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

Values = tuple[int | None, ...]
Row = tuple[int, tuple[str, ...], Values]
Group = tuple[int, tuple[str, ...], Values, int]
Groups = tuple[Sequence[Group], tuple[int, int | None, Values], int, bool]


class TopTable(Protocol):
    """The table, as used by rankings, from any thread."""

    @property
    def connections(self) -> int: ...
    def snapshot(self, family: int, /) -> Any: ...
    def top(
        self,
        family: int,
        count: int,
        /,
        since: Any = None,
        containing: str = "",
        also: Iterable[tuple[str, bytes]] = (),
    ) -> Sequence[Row]: ...
    def top_groups(
        self,
        family: int,
        count: int,
        labels: Iterable[str],
        /,
        since: Any = None,
        containing: str = "",
        also: Iterable[tuple[str, bytes]] = (),
        max_groups: int = MAX_GROUPS,
    ) -> Groups: ...


class QueryError(ValueError):
    """The query is invalid. The text is the reason, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query for at most ``n`` connections with ``filter`` in a label value or the value's name.

    If ``group`` has labels, the query asks for groups of these connections.
    """

    by: str
    n: int = DEFAULT_ENTRIES
    filter: str = ""
    group: tuple[str, ...] = ()


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
    """A ranking criterion: the metric of the same name, or the rate of a metric."""

    name: str
    family: int
    is_rate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A connection or a group: its labels, and its values by metric, in the metric's unit.

    A value that the connection does not have is None. ``rank`` is the value of the ranking
    criterion. ``names`` are the known names of label values, by label. ``connections`` is 1, or the
    number of connections of the group.
    """

    rank: float
    labels: dict[str, str]
    names: dict[str, str]
    connections: int
    values: dict[str, list[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """All connections that match the query, but are in none of the listed groups."""

    connections: int
    rank: float | None
    values: dict[str, list[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """A ranking. ``window_seconds`` is the age of the snapshot, or None without one.

    If connections are ranked, ``groups`` and ``other`` are None. ``approximate`` means that there
    were more than `MAX_GROUPS` groups. Then values can be too low, by up to the values of
    ``other``.
    """

    by: str
    unit: Unit
    filter: str
    group: tuple[str, ...]
    groups: int | None
    approximate: bool
    window_seconds: float | None
    took_seconds: float
    connections: int
    entries: list[Entry]
    other: Other | None


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

    def __init__(
        self,
        *,
        table: TopTable,
        view: View,
        metrics: Sequence[str],
        names: KnownNames | None = None,
    ) -> None:
        """Rank connections of ``table``. ``metrics`` names the families of ``view``, in order.

        ``names`` are shown beside label values, or instead of them.
        """
        self._table = table
        self._families = view.families
        self.names = names
        self.labels = tuple(column.name for column in view.columns)
        self.addresses = frozenset(_address_labels(view.columns) if names else ())
        """The labels with addresses whose names are not in another label."""
        self.nodes = frozenset(_node_labels(view.columns) if names else ())
        """The labels with identifiers of interfaces whose names are shown."""
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
        """Parse the ``parameters`` of a URL. The default of the parameter ``n`` is ``n``.

        Raises QueryError.
        """
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
        return Query(
            by=by,
            n=n if number is None else _count(number),
            filter=text,
            group=self._group(given.get("group", "")),
        )

    def _group(self, text: str) -> tuple[str, ...]:
        """Parse labels separated by commas."""
        group = tuple(text.split(",")) if text else ()
        for label in group:
            if label not in self.labels:
                known = ", ".join(self.labels)
                raise QueryError(f"group: unknown label {printable(label)}. Labels: {known}.")
        if len({*group}) < len(group):
            raise QueryError("group: a label is repeated.")
        return group

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
        family = self._families[key.family]
        seconds = max(start_s - since.taken_s, REPORT_INTERVAL_S) if since else None
        options: dict[str, Any] = {
            "since": since.snapshot if since else None,
            "containing": query.filter,
            "also": self._values_like(query.filter),
        }

        def rank(value: int) -> float:
            return _scaled(value, family) / seconds if seconds else _scaled(value, family)

        groups, other, approximate = None, None, False
        if query.group:
            rows, (connections, others_rank, values), groups, approximate = self._table.top_groups(
                key.family, query.n, query.group, **options, max_groups=MAX_GROUPS
            )
            other = Other(
                connections=connections,
                rank=None if others_rank is None else rank(others_rank),
                values=self._values(values),
            )
        else:
            rows = [(*row, 1) for row in self._table.top(key.family, query.n, **options)]
        labels = query.group or self.labels
        top = Top(
            by=query.by,
            unit=self.metrics[key.family].unit,
            filter=query.filter,
            group=query.group,
            groups=groups,
            approximate=approximate,
            window_seconds=round(start_s - since.taken_s, 3) if since else None,
            took_seconds=round(time.monotonic() - start_s, 6),
            connections=self._table.connections,
            entries=[self._entry(row, labels, rank=rank(row[0])) for row in rows],
            other=other,
        )
        return RankingResult(top, msgspec.json.encode(top))

    def _values_like(self, text: str) -> list[tuple[str, bytes]]:
        """Return label values whose names contain ``text``, as the table expects them."""
        if self.names is None or not text:
            return []
        folded = text.casefold()

        def matches(name: str) -> bool:
            return folded in name.casefold()

        addresses = _lines(self.names.addresses_like(matches)) if self.addresses else b""
        nodes = _lines(self.names.nodes_like(matches)) if self.nodes else b""
        return [
            *((label, addresses) for label in self.addresses),
            *((label, nodes) for label in self.nodes),
        ]

    def _baseline(self, family: int, now_s: float) -> _Snapshot:
        """Return the snapshot to compare with: one to two minutes old, or the oldest that exists.

        Keeps at most two snapshots. After a minute, the newer snapshot replaces the older snapshot.
        """
        taken = self._snapshots.setdefault(family, [])
        if len(taken) > 1 and now_s - taken[1].taken_s >= REPORT_INTERVAL_S:
            del taken[0]
        if not taken or now_s - taken[-1].taken_s >= REPORT_INTERVAL_S:
            taken.append(_Snapshot(self._table.snapshot(family), now_s))
        return taken[0]

    def _entry(self, row: Group, labels: Sequence[str], *, rank: float) -> Entry:
        _, texts, values, connections = row
        named = dict(zip(labels, texts, strict=True))
        return Entry(
            rank=rank,
            labels=named,
            names=self._known_names(named),
            connections=connections,
            values=self._values(values),
        )

    def _known_names(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return the names of the values of ``labels``, by label."""
        if self.names is None:
            return {}
        names = {}
        for label, value in labels.items():
            if label in self.addresses:
                names[label] = self.names.of_address(value)
            elif label in self.nodes:
                names[label] = str(self.names.of_node(value))
        return {label: name for label, name in names.items() if name}

    def _values(self, flat: Values) -> dict[str, list[float | None]]:
        """Return the values by metric, in their units."""
        values: dict[str, list[float | None]] = {}
        start = 0
        for metric, family in zip(self.metrics, self._families, strict=True):
            end = start + len(family.values)
            values[metric.name] = [
                None if value is None else _scaled(value, family) for value in flat[start:end]
            ]
            start = end
        return values


def _address_labels(columns: Sequence[Column]) -> Iterable[str]:
    index = ADDRESS_NAMES.index("name")
    named = {column.path for column in columns if column.lookup and column.index == index}
    for column in columns:
        if column.is_field and column.path in {INITIATOR_IP, TARGET_IP} - named:
            yield column.name


def _node_labels(columns: Sequence[Column]) -> Iterable[str]:
    return (column.name for column in columns if column.is_field and column.path == NODE_TID)


def _lines(values: Iterable[str]) -> bytes:
    return "".join(f"{escaped(value)}\n" for value in values).encode(errors="ignore")


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
