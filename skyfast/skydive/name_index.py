"""Looks up the topology's names of interfaces and addresses.

:class:`NameIndex` has neither clock nor socket: nodes and ``now`` go in, mappings are kept up to
date, and what changed comes out. An analyzer decides what they hold, so everything is bounded.
"""

import asyncio
from collections.abc import Container, Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import islice
from typing import Final

from skyfast.flows import addresses
from skyfast.skydive.topology_nodes import Node

MAX_NODES: Final = 50_000
"""Nodes of one answer that are looked at; an answer has room for about 20,000 real ones."""

MAX_ADDRESSES: Final = 100_000
"""Addresses of one answer that are looked at."""

MAX_NAMES: Final = 100_000
"""Entries of one mapping, remembered ones included."""

MAX_NAME_CHARS: Final = 256
"""Longest name, host, type and node's identity, in characters; a longer one is not known."""


class DefaultEmptyDict(dict[str, str]):
    """A mapping that has an answer to everything: the empty text for what it does not hold."""

    __slots__ = ()

    def __missing__(self, key: str) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class _Update:
    """What becomes of one mapping; ``gone`` is which keys no answer tells any more, since when."""

    changed: Mapping[str, str]
    leaving: Set[str]
    gone: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Changes:
    """What an answer changes. ``left_out`` counts nodes and addresses beyond the bounds."""

    updates: tuple[_Update, ...]
    left_out: int


class NameIndex:
    """The topology's names, as mappings to be asked with what stands in a flow.

    ``node_name``, ``node_host`` and ``node_type`` are asked with a ``NodeTID``. ``owner`` is asked
    with an IP address, in Go's text form, and gives the name of the interface that has it:

    * Where all interfaces that have it share one name (``lo``, ``docker0``), that name.
    * Where all are on one host (a bridge and its port, network namespaces), the first by name:
      it does not depend on an answer's order.
    * Else nothing, because it cannot be current: link-local addresses that several hosts have
      under different names, a virtual address while it moves.

    What an answer tells holds at once. What no answer tells any more, because the node is gone or
    because an analyzer that has just started does not know it yet, stays for ``keep_s``, and
    leaves with the first answer after that. While no answer comes, everything stays.

    Only :meth:`apply` changes the mappings, in place: the thread that calls it may look things
    up whenever it likes.
    """

    def __init__(self, *, keep_s: float) -> None:
        """Begin without names. With a ``keep_s`` no shorter than rows live, no row outlives them.

        Needs no event loop.
        """
        self._name_maps = tuple(_NameMap(keep_s) for _ in range(4))
        self.node_name, self.node_host, self.node_type, self.owner = (
            name_map.lookup for name_map in self._name_maps
        )
        self.ready = asyncio.Event()
        """Set when the first answer has been applied."""

    def keep(self, keep_s: float) -> None:
        """Remember for so long from now on."""
        for name_map in self._name_maps:
            name_map.keep_s = keep_s

    def compare(self, nodes: Iterable[Node], now: float) -> Changes:
        """Return what ``nodes``, the whole topology at ``now``, change. Changes nothing itself.

        For any thread, while none calls :meth:`apply`.
        """
        rest = iter(nodes)
        taken = list(islice(rest, MAX_NODES))
        by_tid: dict[str, Node] = {}
        for node in taken:
            # Two of one TID are the same to a flow, so it must not matter which came first.
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
        """Apply ``changes``, those of the latest :meth:`compare`; return what to look up anew.

        That is each mapping with another answer to anything, and the keys of which that is so.
        Takes time for these alone: some 10 ms for the first answer of a huge topology.
        """
        renamed: list[tuple[DefaultEmptyDict, Set[str]]] = []
        for name_map, update in zip(self._name_maps, changes.updates, strict=True):
            name_map.apply(update)
            if update.changed or update.leaving:
                renamed.append((name_map.lookup, update.changed.keys() | update.leaving))
        self.ready.set()
        return renamed


class _NameMap:
    """One mapping, and since when answers have not current which of its keys."""

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
    """Return the pairs without what is missing, empty or too long."""
    return {
        key: value
        for key, value in pairs
        if value and len(value) <= MAX_NAME_CHARS and len(key) <= MAX_NAME_CHARS
    }


def _owners(nodes: Iterable[Node], *, known: Container[str]) -> tuple[dict[str, str], int]:
    """Return who owns which address, and how many addresses were not looked at.

    ``known`` are addresses as flows have them: of these, none needs to be parsed again.
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
    """Return the name among pairs of host and name, or nothing: see :class:`NameIndex`."""
    hosts = {host for host, _ in candidates}
    names = {name for _, name in candidates}
    return min(names) if len(hosts) == 1 or len(names) == 1 else ""


def _canonical(text: str) -> str:
    """Return an address as flows have it, or nothing where ``text`` is none.

    Go writes IPv6 by RFC 5952 as Python does, but never in the mixed form: what is in
    ``::ffff:0:0/96`` looks like the IPv4 address that it maps. Flows have no zones (``%eth0``).
    """
    address = addresses.read(text.partition("%")[0])
    return "" if address is None else addresses.write(address)
