"""Ranks connections, rows of other views, or groups of rows, for ``/api/top`` and the status page.

Scans of the table run in a thread, one at a time. Requests for the same ranking within a second
share one scan.

For rates, skyfast compares the table with an earlier snapshot. The first request for rates takes
the snapshot. Some minutes after the last request for rates, the snapshot is released. Rates are
available when the snapshot is as old as the agents' ``flow.update``: by then, agents have reported
all flows again.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from skyfast.flows.plan import View
from skyfast.runtime.logs import printable
from skyfast.skydive.known_names import KnownNames
from skyfast.stats import FLOW_UPDATE_S
from skyfast.text_format import escaped
from skyfast.web.ranked_views import (
    RankedView,
    RankingKey,
    Unit,
    Values,
    ranked_view,
    scaled,
    values_by_metric,
)
from skyfast.web.scan_cache import ScanCache

PARAMETERS: Final = ("by", "n", "filter", "group", "view")

DEFAULT_ENTRIES: Final = 50
"""The default number of connections or groups in a response."""

MAX_ENTRIES: Final = 1000
"""The maximum number of connections or groups in a response."""

MAX_FILTER_CHARS: Final = 200

MAX_GROUPS: Final = 65_536
"""The maximum number of groups of a ranking.

If a scan finds more groups, the half with the lowest values of the ranking criterion is added to
`Other`. The groups of a view with two counters (each for both directions) and one gauge need up to
24 MiB of memory."""

RESULT_AGE_S: Final = 1.0
"""How long a result is shared with requests for the same ranking."""

MAX_RESULTS: Final = 8
"""The maximum number of rankings that are running, queued or cached."""

SNAPSHOT_IDLE_S: Final = 300.0
"""After the last request for rates, snapshots are kept for ``flow.update`` plus this time.

Programs that poll ``/api/top`` usually send a request more often than every five minutes."""

SNAPSHOT_INTERVAL_S: Final = 60.0
"""The minimum time between two snapshots.

If ``flow.update`` is longer, ``flow.update`` is the minimum."""

Row = tuple[int, tuple[str, ...], Values, bool]
Group = tuple[int, tuple[str, ...], Values, int]
Groups = tuple[Sequence[Group], tuple[int, int | None, Values], int, bool]


class TopTable(Protocol):
    """The table's methods and properties for rankings. They can be used from any thread."""

    @property
    def connections(self) -> int: ...
    @property
    def view_connections(self) -> Sequence[int]: ...
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


class RankingQueryError(ValueError):
    """A query is invalid. The text is the reason, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingQuery:
    """A query for the busiest connections, rows of a view, or groups of rows."""

    by: str
    """The name of the ranking criterion."""
    n: int = DEFAULT_ENTRIES
    """The maximum number of connections, rows or groups in the response."""
    filter: str = ""
    """Text that must occur in a label value, or in the topology's name for a label value.

    If empty, all rows are ranked."""
    group: tuple[str, ...] = ()
    """The labels to group by. If empty, the rows themselves are ranked."""
    view: str = ""
    """The prefix of the view. If empty, the rows of the first view (the connections) are ranked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedEntry:
    """A connection, a row of another view, or a group of rows."""

    rank: float
    """The value of the ranking criterion."""
    labels: dict[str, str]
    """The label values by label. For a group, only the labels of the query's ``group``."""
    names: dict[str, str]
    """The known names of label values, by label."""
    connections: int
    """Number of connections (or rows) of the group; 1 if the entry is not a group."""
    hidden: bool
    """Whether the connection has no series: it reaches neither ``min_bytes`` nor ``min_packets``.

    For groups, always false."""
    values: dict[str, list[float | None]]
    """Maps each metric to its value, or to its two values (one for each direction).

    Values have the unit of the metric. A missing value is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """All connections that match the query, but are in no group of `Top.entries`."""

    connections: int
    rank: float | None
    """The value of the ranking criterion for these connections together; None without a value."""
    values: dict[str, list[float | None]]
    """The values of all these connections together: see `RankedEntry.values`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """The response to a `RankingQuery`."""

    by: str
    unit: Unit
    """The unit of the criterion's metric. If ``by`` is a rate, the values are per second."""
    view: str
    """The prefix of the view, or "" for the first view.

    In the texts of this class, "connections" are the rows of the view."""
    filter: str
    matches: bool
    """Whether any connection matches ``filter``; true if ``filter`` is empty."""
    group: tuple[str, ...]
    groups: int | None
    """Number of groups, or None if ``group`` is empty."""
    approximate: bool
    """Whether the groups exceeded a limit: `MAX_GROUPS`, or the memory for label values.

    If true, values of groups can lack the values of connections that were added to ``other``."""
    window_seconds: float | None
    """The age of the snapshot, or None if ``by`` is not a rate."""
    rates_in_seconds: float | None
    """The time until rates are available.

    None if rates are already available, or if ``by`` is not a rate."""
    flow_update_seconds: float | None
    """The agents' ``flow.update``, or None if ``by`` is not a rate."""
    note: str | None
    """A sentence if nothing matches ``filter`` or rates are not yet available, otherwise None."""
    took_seconds: float
    connections: int
    """Number of all connections, whether or not they match ``filter``."""
    entries: list[RankedEntry]
    other: Other | None
    """The connections that are in no group of ``entries``, or None if ``group`` is empty."""


@dataclass(frozen=True, slots=True)
class RankingResult:
    """A `Top` and its JSON encoding. Encoding a thousand entries takes 1 ms."""

    top: Top
    json: bytes


@dataclass(frozen=True, slots=True)
class _Snapshot:
    snapshot: Any
    taken_s: float


class Ranking:
    def __init__(
        self,
        *,
        table: TopTable,
        view: View,
        metrics: Sequence[str],
        others: Mapping[str, tuple[View, Sequence[str]]] | None = None,
        names: KnownNames | None = None,
        flow_update_s: Callable[[], float] = lambda: FLOW_UPDATE_S,
    ) -> None:
        """Rank the rows of ``table``.

        * ``view`` is the first view, and ``metrics`` are the names of its families in order.
        * ``others`` maps each prefix to the view and the names of its families, in the table's
          order.
        * ``flow_update_s`` returns the agents' ``flow.update`` in seconds.
        """
        self._table = table
        self._flow_update_s = flow_update_s
        self.names = names
        self.views: dict[str, RankedView] = {}
        """The views by prefix. The prefix of the first view is empty. Views that have only
        histograms are omitted."""
        families = 0
        every = {"": (view, metrics), **(others or {})}
        for index, (prefix, (planned, named)) in enumerate(every.items()):
            ranked = ranked_view(
                index, prefix, planned, named, first_family=families, has_names=names is not None
            )
            if ranked.keys:
                self.views[prefix] = ranked
            families += len(planned.families)
        self._results: ScanCache[RankingQuery, RankingResult] = ScanCache(
            keep_s=RESULT_AGE_S, max_results=MAX_RESULTS, queue=True
        )
        self._snapshots: dict[int, list[_Snapshot]] = {}
        self._release_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def first_view(self) -> RankedView:
        """The view whose rows are the connections."""
        return self.views[""]

    @property
    def snapshots(self) -> int:
        return sum(map(len, self._snapshots.values()))

    def query(
        self,
        parameters: Sequence[tuple[str, str]],
        *,
        n: int = DEFAULT_ENTRIES,
        any_by: bool = False,
    ) -> RankingQuery:
        """Parse the ``parameters`` of a URL. If the parameter ``n`` is missing, use ``n``.

        The query chooses a view as follows:

        * With the parameter ``view``: the view with this prefix
        * With only the parameter ``group``: the result of `_view_of`
        * With neither parameter: the first view, whose rows are the connections

        If the chosen view does not have the criterion ``by``, the query is usually invalid. But if
        ``any_by`` is true and another view has the criterion, the query is valid. In this case, the
        default criterion of the chosen view is used.

        Raises RankingQueryError if the query is invalid.
        """
        given: dict[str, str] = {}
        for name, value in parameters:
            if name not in PARAMETERS:
                known = ", ".join(PARAMETERS)
                raise RankingQueryError(
                    f"Unknown parameter '{printable(name)}'. Parameters: {known}."
                )
            if name in given:
                raise RankingQueryError(f"The parameter '{name}' is repeated.")
            given[name] = value
        number, text = given.get("n"), given.get("filter", "")
        if not text.isascii() and not text.encode(errors="ignore").decode() == text:
            raise RankingQueryError("filter: not valid UTF-8.")
        if len(text) > MAX_FILTER_CHARS:
            raise RankingQueryError(f"filter: longer than {MAX_FILTER_CHARS} characters.")
        by = given.get("by")
        views = self._views(given.get("view", ""))
        group = _group(given.get("group", ""), views)
        view = _view_of(views, group, by)
        if any_by and by not in view.keys and any(by in each.keys for each in self.views.values()):
            by = None
        by = view.default if by is None else by
        if by not in view.keys:
            known = ", ".join(view.keys)
            raise RankingQueryError(f"by: unknown value '{printable(by)}'. Values: {known}.")
        return RankingQuery(
            by=by,
            n=n if number is None else _count(number),
            filter=text,
            group=group,
            view=view.prefix,
        )

    def _views(self, prefix: str) -> Sequence[RankedView]:
        """Return the view with this prefix, or all views if the prefix is empty."""
        if not prefix:
            return list(self.views.values())
        if prefix not in self.views:
            known = ", ".join(filter(None, self.views)) or "none"
            raise RankingQueryError(f"view: unknown view '{printable(prefix)}'. Views: {known}.")
        return [self.views[prefix]]

    async def top(self, query: RankingQuery) -> RankingResult:
        """Return the ranking. Raises BusyError if `MAX_RESULTS` rankings are in progress."""
        return await self._results.get(query, lambda: self._scan(query))

    def close(self) -> None:
        """Release the snapshots. A ranking in progress releases its snapshot when it ends."""
        self._is_closed = True
        self._release()

    def _release(self) -> None:
        if self._release_timer is not None:
            self._release_timer.cancel()
        self._snapshots = {}

    async def _scan(self, query: RankingQuery) -> RankingResult:
        try:
            return await asyncio.to_thread(self._rank, query)
        finally:
            if self._is_closed:
                self._release()
            elif self.views[query.view].keys[query.by].is_rate:
                if self._release_timer is not None:
                    self._release_timer.cancel()
                self._release_timer = asyncio.get_running_loop().call_later(
                    self._flow_update_s() + SNAPSHOT_IDLE_S, self._release
                )

    def _rank(self, query: RankingQuery) -> RankingResult:
        view = self.views[query.view]
        key = view.keys[query.by]
        start_s, update_s = time.monotonic(), self._flow_update_s()
        update_s = round(update_s) or update_s  # skyfast measures flow.update with a small error
        since = self._baseline(key.family, start_s, update_s) if key.is_rate else None
        seconds = start_s - since.taken_s if since else None
        wait_s = None
        if seconds is not None and (seconds < update_s or not seconds):
            wait_s = max(update_s - seconds, 0)
        count = query.n if wait_s is None else 0
        search: dict[str, Any] = {
            "containing": query.filter,
            "also": self._values_like(query.filter, view),
        }
        options = {"since": since.snapshot if since else None, **search}

        def rank(value: int) -> float:
            number = scaled(value, key.decimals)
            return number / seconds if seconds else number

        groups, other, approximate = None, None, False
        if query.group:
            rows, (connections, others_rank, values), groups, approximate = self._table.top_groups(
                key.family, count, query.group, **options, max_groups=MAX_GROUPS
            )
            if wait_s is not None:
                others_rank = None
            other = Other(
                connections=connections,
                rank=None if others_rank is None else rank(others_rank),
                values=values_by_metric(values, view),
            )
            matches = groups > 0 or connections > 0
            entries = [
                self._entry(
                    view, query.group, texts, values, rank=rank(number), connections=members
                )
                for number, texts, values, members in rows
            ]
        else:
            found = self._table.top(key.family, count, **options) if count else ()
            entries = [
                self._entry(view, view.labels, texts, values, rank=rank(number), hidden=not shown)
                for number, texts, values, shown in found
            ]
            matches = bool(entries) or self._matches(key, view, search)
        matches = matches or not query.filter
        top = Top(
            by=query.by,
            unit=key.metric.unit,
            view=query.view,
            filter=query.filter,
            matches=matches,
            group=query.group,
            groups=groups,
            approximate=approximate,
            window_seconds=None if seconds is None else round(seconds, 3),
            rates_in_seconds=None if wait_s is None else round(wait_s, 3),
            flow_update_seconds=round(update_s, 3) if since else None,
            note=_note(query, update_s=update_s, wait_s=wait_s, matches=matches),
            took_seconds=round(time.monotonic() - start_s, 6),
            connections=(
                self._table.view_connections[view.index - 1]
                if view.index
                else self._table.connections
            ),
            entries=entries,
            other=other,
        )
        return RankingResult(top, msgspec.json.encode(top))

    def _matches(self, key: RankingKey, view: RankedView, search: Mapping[str, Any]) -> bool:
        """Return whether any row matches the search, for a ranking that has found no rows.

        A ranking omits rows that have no value of its criterion.
        """
        if not search["containing"]:
            return True
        if key.is_complete:
            return False  # no row was omitted
        _, (connections, *_), *_ = self._table.top_groups(key.family, 0, view.labels[:1], **search)
        return connections > 0

    def _values_like(self, text: str, view: RankedView) -> list[tuple[str, bytes]]:
        """Return the label values whose names contain ``text``.

        The result has the form of the argument ``also`` of `TopTable.top`.
        """
        if self.names is None or not text:
            return []
        folded = text.casefold()

        def matches(name: str) -> bool:
            return folded in name.casefold()

        labels = view.addresses_without_names(view.labels)
        addresses = _lines(self.names.addresses_like(matches)) if labels else b""
        nodes = _lines(self.names.nodes_like(matches)) if view.nodes else b""
        return [
            *((label, addresses) for label in labels),
            *((label, nodes) for label in view.nodes),
        ]

    def _baseline(self, family: int, now_s: float, update_s: float) -> _Snapshot:
        """Return the snapshot to compare with: the older of at most two snapshots.

        When the newer snapshot is one interval old, the older snapshot is dropped, and a new one is
        taken. Therefore, if requests are frequent, the returned snapshot is one to two intervals
        old, except at the beginning.
        """
        interval_s = max(SNAPSHOT_INTERVAL_S, update_s)
        taken = self._snapshots.setdefault(family, [])
        if len(taken) > 1 and now_s - taken[1].taken_s >= interval_s:
            del taken[0]
        if not taken or now_s - taken[-1].taken_s >= interval_s:
            taken.append(_Snapshot(self._table.snapshot(family), now_s))
        return taken[0]

    def _entry(
        self,
        view: RankedView,
        labels: Sequence[str],
        texts: Sequence[str],
        values: Values,
        *,
        rank: float,
        connections: int = 1,
        hidden: bool = False,
    ) -> RankedEntry:
        named = dict(zip(labels, texts, strict=True))
        return RankedEntry(
            rank=rank,
            labels=named,
            names=self._known_names(named, view),
            connections=connections,
            hidden=hidden,
            values=values_by_metric(values, view),
        )

    def _known_names(self, labels: Mapping[str, str], view: RankedView) -> dict[str, str]:
        if self.names is None:
            return {}
        names = {}
        addresses = view.addresses_without_names(labels)
        for label, value in labels.items():
            if label in addresses:
                names[label] = self.names.of_address(value)
            elif label in view.nodes:
                names[label] = str(self.names.of_node(value))
        return {label: name for label, name in names.items() if name}


def _note(
    query: RankingQuery, *, update_s: float, wait_s: float | None, matches: bool
) -> str | None:
    """Return a sentence that explains why there are no entries, or None if there can be entries."""
    if not matches:
        return f"No {'row' if query.view else 'connection'} matches “{query.filter}”."
    if wait_s is None:
        return None
    return (
        f"No rates yet: agents report each flow every {update_s:g} s (flow.update)."
        f" The first rates are available in {math.ceil(wait_s)} s."
    )


def _view_of(views: Sequence[RankedView], group: Sequence[str], by: str | None) -> RankedView:
    """Return the view for a query.

    * If ``group`` is empty: the first of ``views``
    * Otherwise: the first view that has all labels of ``group`` and the criterion ``by``
    * If no view has all of these: the first view that has all labels of ``group``
    """
    if not group:
        return views[0]
    found = [view for view in views if {*group} <= {*view.labels}]
    if not found:
        raise RankingQueryError("group: no view has all of these labels.")
    return next((view for view in found if by in view.keys), found[0])


def _group(text: str, views: Iterable[RankedView]) -> tuple[str, ...]:
    group = tuple(text.split(",")) if text else ()
    known = dict.fromkeys(label for view in views for label in view.labels)
    for label in group:
        if label not in known:
            raise RankingQueryError(
                f"group: unknown label '{printable(label)}'. Labels: {', '.join(known)}."
            )
    if len({*group}) < len(group):
        raise RankingQueryError("group: a label is repeated.")
    return group


def _lines(values: Iterable[str]) -> bytes:
    return "".join(f"{escaped(value)}\n" for value in values).encode(errors="ignore")


def _count(text: str) -> int:
    # `int` also accepts signs, spaces, underscores and non-ASCII digits.
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
    if not 1 <= number <= MAX_ENTRIES:
        raise RankingQueryError(f"n: not an integer from 1 to {MAX_ENTRIES}.")
    return number
