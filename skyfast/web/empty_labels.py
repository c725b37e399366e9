"""Finds labels that should show names, but are empty for most of the traffic.

If Skydive's topology lacks names, nearly all connections have the same empty labels. Then a few
series contain nearly all traffic.
"""

import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from skyfast._table import MAX_RANKED
from skyfast.runtime.logs import LogLimit
from skyfast.stats import EmptyLabels, NameStats
from skyfast.web.forecast import percent
from skyfast.web.ranked_views import RankedView
from skyfast.web.top import Ranking

log = logging.getLogger("skyfast.topology")

INTERVAL_S: Final = 60.0
"""Minimum time between two searches for empty labels."""

MAX_LOAD: Final = 0.005
"""Maximum CPU time of the searches, as a fraction of a core. After a long search, the next search
waits longer."""

MIN_SHARE: Final = 0.9
"""There is a warning if labels are empty for at least this fraction of all bytes."""

_SETS: Final = (
    ("initiator_name", "target_name"),
    ("initiator_host", "target_host"),
    ("node_name",),
    ("node_host",),
)
"""The sets of labels to check. A set counts as empty if all its labels are empty.

The labels of initiator and target are in the same set, because usually at least one of the two
addresses is in the topology. Labels that are in no set are often rightly empty: for example, not
every address belongs to a container."""


class GroupedTable(Protocol):
    """The table's method for the search. It can be called from any thread."""

    def top_groups(
        self, family: int, count: int, labels: Iterable[str], /, *, max_groups: int = ...
    ) -> tuple[Sequence[Any], tuple[int, int | None, Any], int, bool]: ...


def find(
    table: GroupedTable, views: Iterable[RankedView], *, min_share: float = 0.0
) -> list[EmptyLabels]:
    """Return, for each set of labels, the fraction of bytes for which all its labels are empty.

    Slow and thread-safe. The result omits sets with a fraction below ``min_share``. If
    ``min_share`` is above 0.5, the search is faster, because it needs only the group of rows that
    has the most bytes.
    """
    count = 1 if min_share > 0.5 else MAX_RANKED
    found = {}
    for view in views:
        for labels in _sets(view):
            if labels not in found and "bytes" in view.keys:
                family = view.keys["bytes"].family
                share = _share(table, family, labels, count=count)
                if share is not None:
                    found[labels] = EmptyLabels(labels=labels, bytes_share=share)
    return [empty for empty in found.values() if empty.bytes_share >= min_share]


def _sets(view: RankedView) -> Iterator[tuple[str, ...]]:
    for labels in _SETS:
        if chosen := tuple(label for label in labels if label in view.labels):
            yield chosen


def _share(
    table: GroupedTable, family: int, labels: tuple[str, ...], *, count: int
) -> float | None:
    """Return the share of bytes in rows whose ``labels`` are all empty; None without bytes."""
    groups, (_, others, _), _, _ = table.top_groups(family, count, labels, max_groups=MAX_RANKED)
    empty = sum(rank for rank, values, *_ in groups if not any(values))
    total = sum(rank for rank, *_ in groups) + (others or 0)
    return empty / total if total else None


def is_suspicious(empty: EmptyLabels) -> bool:
    """Return whether to warn about the labels of ``empty``.

    There is a warning if the labels are empty for at least `MIN_SHARE` of the bytes. There is one
    exception: if only the label of one end (initiator or target) is exported, the label must be
    empty for all bytes. A share below 100 % is normal, because hosts on the Internet have no names.
    """
    is_one_end = len(empty.labels) == 1 and not empty.labels[0].startswith("node_")
    return empty.bytes_share >= (1 if is_one_end else MIN_SHARE)


def share_text(empty: EmptyLabels) -> str:
    """Return a sentence without a full stop: ``95.0 % of the bytes have an empty node_name``."""
    return f"{percent(empty.bytes_share)} of the bytes have {_empty(empty)}"


def _empty(empty: EmptyLabels) -> str:
    return " and ".join(f"an empty {label}" for label in empty.labels)


def reason(empty: EmptyLabels, names: NameStats) -> str:
    """Return why the labels are empty, as a sentence without a full stop."""
    if not names.addresses and not names.nodes:
        return "the topology is empty"
    if empty.labels[0].startswith("node_"):
        return "the topology has no such names for the capture points of this traffic"
    return (
        "the topology has no such names for the addresses of this traffic, or the addresses are"
        " ambiguous"
    )


class EmptyLabelCheck:
    """Logs warnings about empty labels, and stores these labels in `NameStats.empty_labels`."""

    def __init__(self) -> None:
        self._limit = LogLimit()
        self._read_for: weakref.ref[Ranking] | None = None

    def is_due(self, ranking: Ranking, *, is_read: bool) -> bool:
        """Return whether to search the table of ``ranking`` now.

        ``is_read`` tells whether skyfast has read the whole topology. The result is true if
        ``is_read`` is true in two successive calls for the same table. Between the two calls,
        skyfast has time to update the labels of flows.
        """
        was_read = self._read_for is not None and self._read_for() is ranking
        self._read_for = weakref.ref(ranking) if is_read else None
        return is_read and was_read

    def use(self, found: Sequence[EmptyLabels], names: NameStats) -> None:
        """Store the suspicious labels of ``found`` in ``names``. Log the labels that are new."""
        known = {empty.labels for empty in names.empty_labels}
        names.empty_labels = tuple(filter(is_suspicious, found))
        for empty in names.empty_labels:
            if empty.labels not in known:
                self._limit.warn(
                    log,
                    empty.labels,
                    "%s of the bytes have %s: %s",
                    percent(empty.bytes_share),
                    _empty(empty),
                    reason(empty, names),
                )
