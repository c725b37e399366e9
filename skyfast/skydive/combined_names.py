"""Combines two kinds of names of addresses: names from the topology, and own names.

*Own names* are names that users gave to addresses and networks: see `skyfast.flows.own_names`.
"""

from collections.abc import Set
from typing import Final, Protocol

from skyfast.flows.own_names import NO_NAMES, OwnNames

NameTuple = tuple[str, ...]

_NAME: Final = 0
"""In a tuple of `OwnNames`, the index of the address's name."""

_NETWORK: Final = 1
"""In a tuple of `OwnNames`, the index of the network's name."""

_UNKNOWN: Final[NameTuple] = ("unknown",)
"""Stands for the names of an address that is not in the topology."""

MAX_SHARED: Final = 10_000
"""Maximum number of name tuples in the cache for ambiguous addresses. A full cache is emptied."""


class TopologyNames(Protocol):
    empty: NameTuple
    """The names of an unknown address: a tuple of empty strings."""

    def __getitem__(self, key: str, /) -> NameTuple | None: ...
    def get(self, key: str, default: NameTuple, /) -> NameTuple | None: ...
    def resolve(self, key: str, other: str, point: str, /) -> NameTuple: ...


class CombinedNames(dict[str, NameTuple | None]):
    """Maps addresses, as written in flows, to names. Implements `skyfast.flows.plan.Names`.

    Each tuple of names has these parts:

    1. The own name of the address, or else its name in the topology, or else the own name of its
       network.
    2. The other names of the address in the topology.
    3. The own name of the network, and the values of the keys in ``names_keys``. If there are no
       own names, tuples have part 3 only if a label shows an element of this part.

    An address that is in the topology is added to the dict when it is first looked up.

    The table compares tuples by identity. Therefore two addresses that are not in the topology get
    the same tuple if their own names are equal. Two ambiguous addresses (with several possible
    owners) get the same tuple if both their own names and their names in the topology are equal.
    """

    __slots__ = ("_combines", "_of_ambiguous", "_of_unknown", "_own", "_topology")

    def __init__(self, topology: TopologyNames) -> None:
        super().__init__()
        self._topology = topology
        self.use(NO_NAMES, extends=False)

    def use(self, own: OwnNames, *, extends: bool) -> None:
        """Replace the own names with ``own``.

        ``extends`` is true if a label shows the own name of a network, or the value of a key in
        ``names_keys``.
        """
        self._own = own
        self._combines = extends or own.count > 0
        self._of_unknown: dict[NameTuple, NameTuple] = {}
        self._of_ambiguous: dict[tuple[NameTuple, NameTuple], NameTuple] = {}
        self.clear()

    def forget(self, keys: Set[str]) -> None:
        """Forget the combined names of addresses whose names in the topology have changed."""
        for key in self.keys() & keys:
            del self[key]

    def name_of(self, key: str) -> str:
        """Return the name of an address; "" if the name is unknown or depends on the flow.

        Any thread may call this method. Unlike a lookup, it does not note unknown addresses for a
        later query.
        """
        topology = self._topology
        names = topology.get(key, topology.empty)
        try:
            own = self._own[key]
        except IndexError:  # another thread has just replaced and released the own names
            own = self._own.empty
        return own[_NAME] if names is None else _combined(names, own)[0]

    def __missing__(self, key: str) -> NameTuple | None:
        topology = self._topology
        names = topology.get(key, _UNKNOWN)
        if names is _UNKNOWN:
            names = topology[key]  # also notes the address for a later query
            if self._combines and names is not None:
                own = self._own[key]
                names = self._of_unknown.get(own)
                if names is None:
                    names = self._of_unknown[own] = _combined(topology.empty, own)
            return names
        if self._combines and names is not None:
            names = _combined(names, self._own[key])
        self[key] = names
        return names

    def resolve(self, key: str, other: str, point: str, /) -> NameTuple:
        names = self._topology.resolve(key, other, point)
        if not self._combines:
            return names
        pair = names, self._own[key]
        shared = self._of_ambiguous.get(pair)
        if shared is None:
            if len(self._of_ambiguous) >= MAX_SHARED:
                self._of_ambiguous.clear()
            shared = self._of_ambiguous[pair] = _combined(*pair)
        return shared


def _combined(names: NameTuple, own: NameTuple) -> NameTuple:
    return (own[_NAME] or names[0] or own[_NETWORK], *names[1:], *own[_NETWORK:])
