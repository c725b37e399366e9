"""Finds labels that should have names, but are empty for most of the traffic.

Names of addresses and capture points are in Skydive's topology. If the topology lacks these names,
nearly all connections have the same empty label values, so their traffic is in the same series.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from skyfast._table import MAX_RANKED
from skyfast.runtime.logs import LogLimit
from skyfast.stats import EmptyLabels, NameStats
from skyfast.web.forecast import percent
from skyfast.web.ranked_views import RankedView

log = logging.getLogger("skyfast.topology")

INTERVAL_S: Final = 60.0
"""Minimum time between two searches."""

MAX_LOAD: Final = 0.005
"""The searches of a large table take at most this fraction of a core."""

MIN_SHARE: Final = 0.9
"""There is a warning if labels are empty for this fraction of the bytes."""

_SETS: Final = (
    ("initiator_name", "target_name"),
    ("initiator_host", "target_host"),
    ("node_name",),
    ("node_host",),
)
"""Labels that have a value for each address or capture point of the topology.

Connections with outside addresses have an address of the topology at the other end, so labels of
both ends are checked together. Other labels are empty for good reasons: not every address belongs
to a container, for example."""


class GroupedTable(Protocol):
    """The method of the table that the search calls from any thread."""

    def top_groups(
        self, family: int, count: int, labels: Iterable[str], /, *, max_groups: int = ...
    ) -> tuple[Sequence[Any], tuple[int, int | None, Any], int, bool]: ...


def find(
    table: GroupedTable, views: Iterable[RankedView], *, least: float = 0.0
) -> list[EmptyLabels]:
    """Return how much traffic has empty names. Slow and thread-safe.

    Each set of labels is searched in the first view that has these labels and exports bytes. The
    result has the sets whose share is at least ``least``. If ``least`` is above 0.5, the search is
    faster.
    """
    count = 1 if least > 0.5 else MAX_RANKED
    found = {}
    for view in views:
        for labels in _sets(view):
            if labels not in found and "bytes" in view.keys:
                family = view.keys["bytes"].family
                share = _share(table, family, labels, count=count)
                if share is not None:
                    found[labels] = EmptyLabels(labels=labels, bytes_share=share)
    return [empty for empty in found.values() if empty.bytes_share >= least]


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
    """Return whether to warn about these labels.

    The addresses at one end can all be outside of the topology. So a label of only one end is
    suspicious only if it is always empty.
    """
    is_one_end = len(empty.labels) == 1 and not empty.labels[0].startswith("node_")
    return empty.bytes_share >= (1 if is_one_end else MIN_SHARE)


def share_text(empty: EmptyLabels) -> str:
    """Return the share as a sentence without a full stop."""
    return f"{percent(empty.bytes_share)} of the bytes have {_empty(empty)}"


def _empty(empty: EmptyLabels) -> str:
    return " and ".join(f"an empty {label}" for label in empty.labels)


def reason(empty: EmptyLabels, names: NameStats) -> str:
    """Return why the labels are empty."""
    if not names.addresses and not names.nodes:
        return "the topology is empty"
    kind = "capture points" if empty.labels[0].startswith("node_") else "addresses"
    return f"the topology has no unique names for their {kind}"


class EmptyLabelCheck:
    """Logs warnings about empty labels, and keeps them in the counts of names."""

    def __init__(self) -> None:
        """Start without warnings."""
        self._limit = LogLimit()

    def use(self, found: Sequence[EmptyLabels], names: NameStats) -> None:
        """Replace the warnings, and log those that are new."""
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
