"""Looks up the topology's names of interfaces and addresses.

:class:`NameIndex` has no clock and no socket: its inputs are nodes and ``now``. It updates mappings
and returns the changes. The content comes from analyzers, so all sizes are bounded.
"""

import asyncio
from collections.abc import Container, Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import islice
from typing import Final

from skyfast.flows import addresses
from skyfast.skydive.topology_nodes import Node

MAX_NODES: Final = 50_000
"""Maximum number of nodes used of a response, which has space for about 20,000 real ones."""

MAX_ADDRESSES: Final = 100_000
"""Maximum number of addresses used of a response."""

MAX_NAMES: Final = 100_000
"""Maximum entries of a mapping, including those that are kept after they disappeared."""

MAX_NAME_CHARS: Final = 256
"""Maximum characters of a name, host, type or node ID; longer ones are ignored."""


class DefaultEmptyDict(dict[str, str]):
    """A dict that returns an empty string for missing keys."""

    __slots__ = ()

    def __missing__(self, key: str) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class _Update:
    """The changes of a mapping. ``gone`` has the keys that responses lack, and since when."""

    changed: Mapping[str, str]
    leaving: Set[str]
    gone: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes caused by a response. ``left_out`` counts nodes and addresses over the limits."""

    updates: tuple[_Update, ...]
    left_out: int


class NameIndex:
    """The topology's names, as mappings from fields of flows.

    The keys of ``node_name``, ``node_host`` and ``node_type`` are ``NodeTID`` values. The keys of
    ``owner`` are IP addresses as Go formats them, and its values are the names of the interfaces
    with these addresses:

    * If all interfaces with the address have the same name (``lo``, ``docker0``), that name.
    * If all are on one host (a bridge and its port, network namespaces), the alphabetically first
      name, so that the order of the response does not matter.
    * Otherwise none, because the owner is ambiguous: link-local addresses that several hosts have
      under different names, a virtual address while it moves.

    Changed and new entries apply at once. If responses lack an entry, because the node was deleted
    or because an analyzer that has just started does not know it yet, the entry stays for
    ``keep_s`` and is removed by the first response after that. Without responses, all entries stay.

    Only :meth:`apply` changes the mappings, in place. The thread that calls it may use them at any
    time.
    """

    def __init__(self, *, keep_s: float) -> None:
        """Start without names. Needs no event loop.

        ``keep_s`` should be at least the lifetime of rows, so that rows do not lose their names.
        """
        self._name_maps = tuple(_NameMap(keep_s) for _ in range(4))
        self.node_name, self.node_host, self.node_type, self.owner = (
            name_map.lookup for name_map in self._name_maps
        )
        self.ready = asyncio.Event()
        """Set when the first response has been applied."""

    def keep(self, keep_s: float) -> None:
        """Set how long entries are kept after they disappeared."""
        for name_map in self._name_maps:
            name_map.keep_s = keep_s

    def compare(self, nodes: Iterable[Node], now: float) -> Changes:
        """Return the changes that ``nodes``, the whole topology at ``now``, cause.

        Modifies nothing. Any thread may call it unless another is in :meth:`apply`.
        """
        rest = iter(nodes)
        taken = list(islice(rest, MAX_NODES))
        by_tid: dict[str, Node] = {}
        for node in taken:
            # Flows cannot distinguish two nodes with the same TID; the choice must be stable.
            if node.tid and (node.tid not in by_tid or _rank(node) < _rank(by_tid[node.tid])):
                by_tid[node.tid] = node
        owners, left_out = _owners(taken, known=self.owner)
        current = (
            _usable((tid, node.metadata.name) for tid, node in by_tid.items()),
            _usable((tid, node.host) for tid, node in by_tid.items()),
            _usable((tid, node.metadata.type) for tid, node in by_tid.items()),
            owners,
        )
        return Changes(
            tuple(
                name_map.compare(names, now)
                for name_map, names in zip(self._name_maps, current, strict=True)
            ),
            left_out + sum(1 for _ in rest),
        )

    def apply(self, changes: Changes) -> list[tuple[DefaultEmptyDict, Set[str]]]:
        """Apply ``changes``, the result of the latest :meth:`compare`.

        Returns each changed mapping with its changed keys. The run time depends on the number of
        changes: about 10 ms for the first response of a huge topology.
        """
        renamed: list[tuple[DefaultEmptyDict, Set[str]]] = []
        for name_map, update in zip(self._name_maps, changes.updates, strict=True):
            name_map.apply(update)
            if update.changed or update.leaving:
                renamed.append((name_map.lookup, update.changed.keys() | update.leaving))
        self.ready.set()
        return renamed


class _NameMap:
    """A mapping, with the time since when responses lack a key."""

    def __init__(self, keep_s: float) -> None:
        self.lookup = DefaultEmptyDict()
        self.keep_s = keep_s
        self._gone: Mapping[str, float] = {}

    def compare(self, current: Mapping[str, str], now: float) -> _Update:
        gone = {key: self._gone.get(key, now) for key in self.lookup.keys() - current.keys()}
        excess = len(current) + len(gone) - MAX_NAMES
        oldest_first = sorted(gone, key=gone.__getitem__)
        leaving = {
            key
            for number, key in enumerate(oldest_first)
            if number < excess or now - gone[key] >= self.keep_s
        }
        return _Update(
            changed={key: value for key, value in current.items() if self.lookup[key] != value},
            leaving=leaving,
            gone={key: since for key, since in gone.items() if key not in leaving},
        )

    def apply(self, update: _Update) -> None:
        self.lookup.update(update.changed)
        for key in update.leaving:
            del self.lookup[key]
        self._gone = update.gone


def _rank(node: Node) -> tuple[str, str, str]:
    return node.host or "", node.metadata.name or "", node.metadata.type or ""


def _usable(pairs: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return the pairs with a value that is neither missing nor empty nor too long."""
    return {
        key: value
        for key, value in pairs
        if value and len(value) <= MAX_NAME_CHARS and len(key) <= MAX_NAME_CHARS
    }


def _owners(nodes: Iterable[Node], *, known: Container[str]) -> tuple[dict[str, str], int]:
    """Return the owner of each address, and the number of addresses beyond the limit.

    ``known`` are addresses in the notation of flows, which need no parsing.
    """
    owners: dict[str, set[tuple[str, str]]] = {}
    pairs = (
        (text, node)
        for node in nodes
        for texts in (node.metadata.ipv4, node.metadata.ipv6)
        for text in texts or ()
    )
    for text, node in islice(pairs, MAX_ADDRESSES):
        name, address = node.metadata.name, text.partition("/")[0]
        if address not in known:
            address = _canonical(address)
        if name and len(name) <= MAX_NAME_CHARS and address:
            owners.setdefault(address, set()).add((node.host or "", name))
    left_out = sum(1 for _ in pairs)
    return {address: _owner(candidates) for address, candidates in owners.items()}, left_out


def _owner(candidates: Set[tuple[str, str]]) -> str:
    """Choose the name from pairs of host and name, or none: see :class:`NameIndex`."""
    hosts = {host for host, _ in candidates}
    names = {name for _, name in candidates}
    return min(names) if len(hosts) == 1 or len(names) == 1 else ""


def _canonical(text: str) -> str:
    """Return an address in the notation of flows, or "" if ``text`` is not an address.

    Go formats IPv6 like Python, by RFC 5952, but never uses the mixed notation: an address in
    ``::ffff:0:0/96`` is formatted as the IPv4 address that it maps. Flows have no zones
    (``%eth0``).
    """
    address = addresses.read(text.partition("%")[0])
    return "" if address is None else addresses.write(address)
