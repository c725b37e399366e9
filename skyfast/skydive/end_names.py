"""The names of the ends of flows: names of the topology, combined with own names."""

from collections.abc import Set
from typing import Final, Protocol

from skyfast.flows.own_names import NO_NAMES, OwnNames

Names = tuple[str, ...]

_NAME: Final = 0
_NETWORK: Final = 1
"""Indexes in the names of `OwnNames`."""

_UNKNOWN: Final[Names] = ("unknown",)
"""Stands for an address that the topology does not know."""

MAX_SHARED: Final = 10_000
"""Maximum number of shared combinations for ambiguous addresses; then all are dropped."""


class TopologyNames(Protocol):
    """The names of addresses in the topology. ``empty`` are the names of unknown addresses."""

    empty: Names

    def __getitem__(self, key: str, /) -> Names | None: ...
    def get(self, key: str, default: Names, /) -> Names | None: ...
    def resolve(self, key: str, other: str, point: str, /) -> Names: ...


class EndNames(dict[str, Names | None]):
    """The names of addresses, by address in Go's notation, as `skyfast.flows.plan.Names`.

    The names of an address are the names of the topology, followed by the own network and the own
    values. While there are no entries and no label shows own networks or values, these are left
    out. The first name is the own name of the address, otherwise its name in the topology,
    otherwise its own network.

    The dict only contains addresses that have been looked up and that the topology knows. Combined
    names of all other addresses are shared, because the table recognizes names by their identity.
    """

    __slots__ = ("_combines", "_of_ambiguous", "_of_unknown", "_own", "_topology")

    def __init__(self, topology: TopologyNames) -> None:
        """Start without own names."""
        super().__init__()
        self._topology = topology
        self.use(NO_NAMES, extends=False)

    def use(self, own: OwnNames, *, extends: bool) -> None:
        """Use ``own`` names. ``extends`` means that labels show own networks and values."""
        self._own = own
        self._combines = extends or own.count > 0
        self._of_unknown: dict[Names, Names] = {}
        self._of_ambiguous: dict[tuple[Names, Names], Names] = {}
        self.clear()

    def forget(self, keys: Set[str]) -> None:
        """Forget combined names, because the names of these addresses in the topology changed."""
        for key in self.keys() & keys:
            del self[key]

    def name_of(self, key: str) -> str:
        """Return the first name of an address; "" if the name is unknown or depends on the flow.

        Any thread may call this. Unlike a lookup, it does not note that an address is unknown.
        """
        topology = self._topology
        names = topology.get(key, topology.empty)
        try:
            own = self._own[key]
        except IndexError:  # replaced and released by another thread in the meantime
            own = self._own.nothing
        return own[_NAME] if names is None else _combined(names, own)[0]

    def __missing__(self, key: str) -> Names | None:
        topology = self._topology
        names = topology.get(key, _UNKNOWN)
        if names is _UNKNOWN:
            names = topology[key]  # notes if the address is unknown
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

    def resolve(self, key: str, other: str, point: str, /) -> Names:
        """Return the names of an ambiguous address in this context."""
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


def _combined(names: Names, own: Names) -> Names:
    return (own[_NAME] or names[0] or own[_NETWORK], *names[1:], *own[_NETWORK:])
