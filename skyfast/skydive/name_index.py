"""Maps addresses and capture points to their names.

The table uses the mappings as `skyfast.flows.plan.Names`. The size of each mapping is limited,
because analyzers and flows determine its content.
"""

import asyncio
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Generic, TypeVar

from skyfast.flows.catalog import ADDRESS_NAMES, NODE_NAMES
from skyfast.flows.own_names import OwnNames
from skyfast.flows.plan import Names
from skyfast.flows.planner import shows_only_own, shows_topology
from skyfast.flows.selection import ExportSelection
from skyfast.skydive.combined_names import CombinedNames
from skyfast.skydive.multimap import MultiMap
from skyfast.skydive.name_candidates import Candidate, PointLocation, choose, is_local
from skyfast.skydive.name_resolver import Resolution
from skyfast.skydive.subnets import Networks
from skyfast.stats import LOOKUP_DROPS, NameStats

MAX_NAMES: Final = 100_000
"""Maximum number of entries in a mapping, including entries that are no longer in the topology."""

MAX_RESOLVED: Final = 50_000
"""Maximum number of keys (`ResolveKey`) in the cache for ambiguous addresses. Further keys get
empty names."""

PRUNE_INTERVAL_S: Final = 300.0
"""Minimum time between two clearings of the cache for ambiguous addresses.

After a clearing, the names for current flows are looked up again. Therefore only unused names are
lost."""

MAX_UNKNOWN: Final = 20_000
"""Maximum number of unknown addresses that wait for a query.

The same limit applies to the number of addresses that were queried in the last
`REQUERY_INTERVAL_S`. That number stays below the limit: at most 7,500 addresses are queried in this
time."""

REQUERY_INTERVAL_S: Final = 60.0
"""Minimum time between two queries for the same unknown address."""

MAX_ADDRESS_CHARS: Final = 45
"""Maximum length of an IP address; longer values are not queried."""

ResolveKey = tuple[str, str, str]
"""An ambiguous address in a flow, the other address of the flow, and the flow's capture point."""

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Update(Generic[V]):
    """The changes of one mapping."""

    changed: Mapping[str, V]
    """The new values of all new or changed keys."""
    removed: Set[str]
    """The keys to remove now."""
    gone: Mapping[str, float]
    """The keys that are missing from the resolution, but are not removed yet.

    Maps each key to the time of the first `Resolution` without this key. The keys with the earliest
    times come first."""

    @property
    def keys(self) -> set[str]:
        return {*self.changed, *self.removed}


@dataclass(frozen=True, slots=True)
class _Context:
    """The data for resolving ambiguous addresses."""

    candidates: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)
    points: Mapping[str, PointLocation] = field(default_factory=dict)
    networks: Mapping[str, Networks] = field(default_factory=dict)
    _by_namespace: dict[str, MultiMap[str, Candidate]] = field(default_factory=dict)

    def choose(self, key: ResolveKey) -> tuple[str, ...] | None:
        address, other, point_id = key
        point = self.points.get(point_id)
        if is_local(address):
            candidates = self._in_namespaces_of(point, address)
        else:
            candidates = self.candidates[address]
        return choose(candidates, other, point, self.networks, address=address)

    def _in_namespaces_of(self, point: PointLocation | None, address: str) -> tuple[Candidate, ...]:
        """Return the candidates in the namespaces of a capture point and of its veth peers.

        A loopback address has one candidate in each namespace, so there can be thousands of
        candidates. Therefore the candidates are indexed by namespace.
        """
        if point is None:
            return ()
        by_namespace = self._by_namespace.get(address)
        if by_namespace is None:
            owners = self.candidates[address]
            by_namespace = MultiMap((owner.namespace, owner) for owner in owners)
            self._by_namespace[address] = by_namespace
        namespaces = {point.namespace, *point.peers} - {""}
        return tuple(owner for name in namespaces for owner in by_namespace.get(name))


@dataclass(frozen=True, slots=True)
class IndexChanges:
    """The changes caused by a resolution, for `NameIndex.apply`."""

    nodes: _Update[tuple[str, ...]]
    addresses: _Update[tuple[str, ...] | None]
    context: _Context
    ambiguous: int
    """The number of ambiguous addresses, not counting local addresses (`is_local`)."""
    resolved: dict[ResolveKey, tuple[str, ...]]
    """The new content of the cache for ambiguous addresses: the names for each key, chosen again
    with ``context``. Empty if the cache is cleared."""
    cached: int
    """The number of keys in the cache when these changes were computed. `apply` drops keys that
    were added to the cache later."""
    affected: Set[str]
    """The ambiguous addresses whose names have changed for at least one cached key. If the cache is
    cleared, these are all addresses whose names may change."""
    pruned_at: float | None
    """The time when the cache was last cleared, or None."""
    left_out: int
    """The number of nodes and addresses beyond `MAX_NAMES`."""


class NodeNames(dict[str, tuple[str, ...]]):
    """Maps the ``NodeTID`` of a capture point to names in the order of `NODE_NAMES`."""

    __slots__ = ()

    EMPTY: Final = ("",) * len(NODE_NAMES)

    def __missing__(self, key: str) -> tuple[str, ...]:
        return self.EMPTY

    def resolve(self, key: str, other: str, point: str, /) -> tuple[str, ...]:
        return self[key]


class AddressNames(dict[str, tuple[str, ...] | None]):
    """Maps addresses, as written in flows, to their names.

    The names are in the order of `ADDRESS_NAMES`, followed by the values of the pod labels. An
    ambiguous address is mapped to None: `resolve` chooses the names for each flow.
    """

    __slots__ = (
        *("_context", "_overflowed", "_queried", "_resolved", "_unknown"),
        *("dropped", "empty", "notes_unknown"),
    )

    def __init__(self, size: int) -> None:
        """``size`` is the number of strings in each tuple of names."""
        super().__init__()
        self.empty = ("",) * size
        self.notes_unknown = True
        """Whether lookups collect unknown addresses for `take_unknown`."""
        self.dropped = dict.fromkeys(LOOKUP_DROPS, 0)
        """The number of lookups that exceeded a limit. The keys are kinds of addresses: ``unknown``
        and ``ambiguous``."""
        self._context = _Context()
        self._resolved: dict[ResolveKey, tuple[str, ...]] = {}
        self._overflowed = False
        self._unknown: dict[str, None] = {}
        self._queried: dict[str, float] = {}

    def __missing__(self, key: str) -> tuple[str, ...]:
        if self.notes_unknown and key not in self._queried and key not in self._unknown and key:
            if len(self._unknown) < MAX_UNKNOWN and len(key) <= MAX_ADDRESS_CHARS:
                self._unknown[key] = None
            else:
                self.dropped["unknown"] += 1
        return self.empty

    def resolve(self, key: str, other: str, point: str, /) -> tuple[str, ...]:
        """Return the names of an address for one flow.

        If the flow does not show which names apply, the names are empty.
        """
        resolve_key = key, other, point
        names = self._resolved.get(resolve_key)
        if names is not None:
            return names
        if key not in self._context.candidates:
            return self.get(key) or self.empty
        if len(self._resolved) >= MAX_RESOLVED:
            self.dropped["ambiguous"] += 1
            self._overflowed = True
            return self.empty
        names = self._resolved[resolve_key] = self._context.choose(resolve_key) or self.empty
        return names

    def forget_ambiguous(self) -> None:
        self._context, self._resolved, self._overflowed = _Context(), {}, False

    @property
    def unknown(self) -> int:
        """The number of unknown addresses that wait for a query or have just been queried."""
        return len(self._unknown) + len(self._queried)

    def take_unknown(self, now: float, count: int) -> list[str]:
        """Return up to ``count`` unknown addresses to query.

        For `REQUERY_INTERVAL_S` after ``now`` (in seconds), lookups do not collect these addresses
        again.
        """
        self._forget_old_queries(now)
        taken: list[str] = []
        while self._unknown and len(taken) < count:
            address = next(iter(self._unknown))
            del self._unknown[address]
            if address not in self:  # the address may have become known
                self._queried[address] = now
                taken.append(address)
        return taken

    def has_recent_queries(self, now: float) -> bool:
        """Return whether an unknown address was queried within the last `REQUERY_INTERVAL_S`."""
        self._forget_old_queries(now)
        return bool(self._queried)

    def _forget_old_queries(self, now: float) -> None:
        queried = self._queried
        old = [address for address, since in queried.items() if now - since >= REQUERY_INTERVAL_S]
        excess = islice(queried, max(0, len(queried) - MAX_UNKNOWN))
        for address in {*old, *excess}:
            del queried[address]


class NameIndex:
    """The current names of capture points and addresses.

    New and changed names apply at once. An analyzer that has just started may not know all nodes
    yet. Therefore, if a node is missing from a resolution, its names stay for ``keep_s``. The first
    resolution after this time removes the names. If all capture points of a host are missing, the
    candidates on this host (possible owners of ambiguous addresses) also stay for ``keep_s``.

    The table keeps references to the mappings. Therefore :meth:`apply` and :meth:`forget_topology`
    change the mappings in place.
    """

    def __init__(self, *, keep_s: float, k8s_labels: tuple[str, ...] = ()) -> None:
        """``keep_s`` should be at least the lifetime of rows, so that rows do not lose their names.

        ``k8s_labels`` are the keys of pod labels. In ``addresses``, the names of each address end
        with the values of these labels.
        """
        self.k8s_labels = k8s_labels
        self.nodes = NodeNames()
        self.addresses = AddressNames(len(ADDRESS_NAMES) + len(k8s_labels))
        """The names of addresses, from the topology."""
        self.combined = CombinedNames(self.addresses)
        """The names in ``addresses``, combined with own names. The table uses these names."""
        self.ready = asyncio.Event()
        """Set when the first resolution has been applied."""
        self.ambiguous = 0
        """The number of ambiguous addresses. Loopback and link-local addresses are not counted:
        they are ambiguous in every network."""
        self.stats = NameStats()
        """A reload replaces both the index and its counters, or neither of them."""
        self._keep_s = keep_s
        self._gone_nodes: Mapping[str, float] = {}
        self._gone_addresses: Mapping[str, float] = {}
        self._pruned_at: float | None = None

    @classmethod
    def of(
        cls, export: ExportSelection, *, keep_s: float, own: OwnNames | None = None
    ) -> "NameIndex":
        """Return an index for the labels of ``export``. It has no names from the topology yet."""
        index = cls(keep_s=keep_s, k8s_labels=export.k8s_labels)
        index.use_own(OwnNames({}, export.names_keys) if own is None else own, export)
        return index

    def use_own(self, own: OwnNames, export: ExportSelection) -> None:
        """Use ``own``. The caller must relabel the flows whose addresses get other names."""
        labels = [label for view in export.views for label in view.labels]
        self.addresses.notes_unknown = any(map(shows_topology, labels))
        self.combined.use(own, extends=any(map(shows_only_own, labels)))

    def forget_topology(self) -> None:
        """Remove the names from the topology. Call this method when no label shows them anymore."""
        self.nodes.clear()
        self.addresses.clear()
        self.addresses.forget_ambiguous()
        self.combined.clear()
        self._gone_nodes, self._gone_addresses = {}, {}
        self._pruned_at = None
        self.ambiguous = 0
        self.ready.clear()

    def set_keep_time(self, keep_s: float) -> None:
        self._keep_s = keep_s

    def is_due(self, now: float) -> bool:
        """Return whether names that have been missing for ``keep_s`` must be removed."""
        gone = self._gone_nodes, self._gone_addresses
        oldest = [since for times in gone for since in islice(times.values(), 1)]
        return any(now - since >= self._keep_s for since in oldest)

    def compare(self, resolution: Resolution, now: float) -> IndexChanges:
        """Return the changes at ``now`` caused by ``resolution``, which covers the whole topology.

        Any thread may call this method, except while a thread is in :meth:`apply`.
        """
        nodes, left_out_nodes = _truncated(resolution.nodes)
        candidates, left_out_addresses = _truncated(resolution.addresses)
        context = self.addresses._context
        node_update = self._diff(self.nodes, nodes, self._gone_nodes, now)
        points = dict(islice(resolution.points.items(), MAX_NAMES))
        hosts = {point.host for point in points.values()}
        # The names and the location of a missing capture point stay for ``keep_s``. If all capture
        # points of a host are missing, the host's candidates and networks also stay.
        for tid in node_update.gone:
            if tid in context.points:
                points[tid] = context.points[tid]
        gone_hosts = {point.host for point in points.values()} - hosts
        if gone_hosts:
            candidates = {**candidates, **_with_gone_hosts(candidates, context, gone_hosts)}
        names = {address: _common_names(address, owners) for address, owners in candidates.items()}
        update = self._diff(self.addresses, names, self._gone_addresses, now)
        ambiguous = {
            address: candidates[address] for address, value in names.items() if value is None
        }
        for address in update.gone:
            if address in context.candidates:
                ambiguous[address] = context.candidates[address]
        networks = {host: context.networks[host] for host in gone_hosts if host in context.networks}
        return self._changes(
            nodes=node_update,
            addresses=update,
            context=_Context(ambiguous, points, {**networks, **resolution.networks}),
            now=now,
            left_out=left_out_nodes + left_out_addresses,
        )

    def compare_new(self, resolution: Resolution, now: float) -> IndexChanges:
        """Return the changes caused by ``resolution``, which covers only a part of the topology.

        Only addresses that are still unknown get names.
        """
        capacity = MAX_NAMES - len(self.addresses)
        added = {
            address: owners
            for address, owners in resolution.addresses.items()
            if address not in self.addresses
        }
        candidates = dict(islice(added.items(), capacity))
        names = {address: _common_names(address, owners) for address, owners in candidates.items()}
        ambiguous = {
            address: candidates[address] for address, value in names.items() if value is None
        }
        context = self.addresses._context
        return self._changes(
            nodes=_Update({}, frozenset(), self._gone_nodes),
            addresses=_Update(names, frozenset(), self._gone_addresses),
            context=_Context({**context.candidates, **ambiguous}, context.points, context.networks),
            now=now,
            left_out=len(added) - len(candidates),
        )

    def _changes(
        self,
        *,
        nodes: _Update[tuple[str, ...]],
        addresses: _Update[tuple[str, ...] | None],
        context: _Context,
        now: float,
        left_out: int,
    ) -> IndexChanges:
        cached = self.addresses._resolved.copy()  # the event loop may add entries concurrently
        full = len(cached) > MAX_RESOLVED // 2
        is_pruned = full and (self._pruned_at is None or now - self._pruned_at >= PRUNE_INTERVAL_S)
        if is_pruned:
            resolved: dict[ResolveKey, tuple[str, ...]] = {}
            affected = {address for address, _, _ in cached}
            if self.addresses._overflowed:
                affected |= context.candidates.keys()
        else:
            resolved, affected = self._resolve_again(cached, context)
        return IndexChanges(
            nodes=nodes,
            addresses=addresses,
            context=context,
            ambiguous=sum(not is_local(address) for address in context.candidates),
            resolved=resolved,
            cached=len(cached),
            affected=affected,
            pruned_at=now if is_pruned else self._pruned_at,
            left_out=left_out,
        )

    def _resolve_again(
        self, cached: Mapping[ResolveKey, tuple[str, ...]], context: _Context
    ) -> tuple[dict[ResolveKey, tuple[str, ...]], set[str]]:
        """Choose the names of all cached keys with ``context``.

        Returns the names by key, and the addresses whose names have changed.
        """
        resolved: dict[ResolveKey, tuple[str, ...]] = {}
        affected: set[str] = set()
        for key, before in cached.items():
            if key[0] in context.candidates:
                names = context.choose(key) or self.addresses.empty
                resolved[key] = before if names == before else names
                if names != before:
                    affected.add(key[0])
        return resolved, affected

    def _diff(
        self,
        lookup: Mapping[str, V],
        current: Mapping[str, V],
        gone: Mapping[str, float],
        now: float,
    ) -> _Update[V]:
        missing = {key: gone.get(key, now) for key in lookup.keys() - current.keys()}
        excess = len(current) + len(missing) - MAX_NAMES
        oldest_first = sorted(missing, key=missing.__getitem__)
        removed = {
            key
            for number, key in enumerate(oldest_first)
            if number < excess or now - missing[key] >= self._keep_s
        }
        return _Update(
            changed={
                key: value for key, value in current.items() if lookup.get(key, _MISSING) != value
            },
            removed=removed,
            gone={key: missing[key] for key in oldest_first if key not in removed},
        )

    def apply(self, changes: IndexChanges) -> list[tuple[Names, Set[str]]]:
        """Apply ``changes``, which must be from the latest comparison.

        Returns each changed mapping, and those of its keys whose names have changed, or may have
        changed for some flows. Applying the first resolution of a huge topology takes about 10 ms.
        """
        addresses = self.addresses
        late = islice(reversed(addresses._resolved), len(addresses._resolved) - changes.cached)
        changed = {
            *changes.addresses.keys,
            *changes.affected,
            # Names that were cached after the comparison were chosen with the outdated context.
            *(address for address, _, _ in late if address in changes.context.candidates),
        }
        _apply_update(self.nodes, changes.nodes)
        _apply_update(addresses, changes.addresses)
        self._gone_nodes, self._gone_addresses = changes.nodes.gone, changes.addresses.gone
        addresses._context, addresses._resolved = changes.context, changes.resolved
        if changes.pruned_at != self._pruned_at:
            addresses._overflowed = False
        self._pruned_at = changes.pruned_at
        self.ambiguous = changes.ambiguous
        self.combined.forget(changed)
        self.ready.set()
        renamed: list[tuple[Names, Set[str]]] = [
            (self.nodes, changes.nodes.keys),
            (self.combined, changed),
        ]
        return [(names, keys) for names, keys in renamed if keys]


_MISSING: Final = object()


def _truncated(mapping: Mapping[str, V]) -> tuple[Mapping[str, V], int]:
    """Return up to `MAX_NAMES` entries, and the number of omitted entries."""
    if len(mapping) <= MAX_NAMES:
        return mapping, 0
    return dict(islice(mapping.items(), MAX_NAMES)), len(mapping) - MAX_NAMES


def _with_gone_hosts(
    candidates: Mapping[str, tuple[Candidate, ...]], context: _Context, gone_hosts: Set[str]
) -> dict[str, tuple[Candidate, ...]]:
    """Return the candidates of addresses that have lost candidates on ``gone_hosts``.

    Each address gets its current candidates and the lost candidates. Addresses without current
    candidates are left out.

    After an analyzer has started, hosts reappear in the topology one by one. If several hosts have
    the same address, the address must not get the names of the host that reappears first.
    """
    kept: dict[str, tuple[Candidate, ...]] = {}
    for address, owners in context.candidates.items():
        gone = [owner for owner in owners if owner.host in gone_hosts]
        if gone and address in candidates:
            kept[address] = tuple(dict.fromkeys((*candidates[address], *gone)))
    return kept


def _common_names(address: str, candidates: tuple[Candidate, ...]) -> tuple[str, ...] | None:
    """Return the names of ``candidates`` if all of them have the same names, else None.

    For a local address, always return None: every host can have this address.
    """
    if is_local(address):
        return None
    first = candidates[0].names
    return first if all(candidate.names == first for candidate in candidates) else None


def _apply_update(lookup: dict[str, V], update: _Update[V]) -> None:
    lookup.update(update.changed)
    for key in update.removed:
        del lookup[key]
